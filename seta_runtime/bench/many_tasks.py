"""A bank of very many tiny tasks on disk, for what a bank costs by itself: no model, no engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from adapters.bank import Bank, BaseModelInfo, ExpertInfo, GateInfo, Manifest, ObjectRef, TaskInfo
from adapters.bank.manifest import version_for
from adapters.gate import AnalyticGate

HIDDEN, WIDTH, LAYERS, TRUNK, BLOCK_SIZE, RANK = 64, 32, 6, 2, 16, 4
CREATED = datetime(2026, 1, 1, tzinfo=UTC)
BASE = BaseModelInfo(
    architecture="none",
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    intermediate_size=2 * HIDDEN,
    num_attention_heads=4,
    num_kv_heads=2,
    head_size=16,
    vocab_size=64,
    weights_sha256="0" * 64,
)


def bank_of(path: Path, num_tasks: int, seed: int = 0) -> Bank:
    """Generation 0, generation 1 with all tasks but the last, generation 2 with all `num_tasks`."""
    bank, generator = Bank.create(path), torch.Generator().manual_seed(seed)
    gate = _empty_gate(generator)
    manifest = Manifest(
        generation=0,
        parent=None,
        created=CREATED,
        base=BASE,
        trunk_layers=TRUNK,
        block_size=BLOCK_SIZE,
        targets=("v_proj",),
        gate=_stored(bank, gate),
    )
    bank.publish(manifest)
    refs = [bank.put_object(_expert(generator)) for _ in range(num_tasks)]
    means = torch.randn(num_tasks, WIDTH, generator=generator)
    for number, count in ((1, num_tasks - 1), (2, num_tasks)):
        fitted = replace(gate, count=torch.full((count,), 100.0), mean=means[:count], scatter=torch.eye(WIDTH) * count)
        manifest = _generation(manifest, number, refs[:count], _stored(bank, fitted))
        bank.publish(manifest)
    return bank


def _generation(old: Manifest, number: int, refs: list[ObjectRef], gate: GateInfo) -> Manifest:
    names = [f"task{i:04d}" for i in range(len(refs))]
    changes = {
        "generation": number,
        "parent": number - 1,
        "tasks": tuple(TaskInfo(name=name, generation=number, num_train=100, num_test=0) for name in names),
        "experts": tuple(
            ExpertInfo(
                id=f"{name}.unique",
                kind="unique",
                tasks=(name,),
                rank=RANK,
                num_blocks=2 * (LAYERS - TRUNK),
                **ref._asdict(),
            )
            for name, ref in zip(names, refs, strict=True)
        ),
        "membership": tuple(tuple(int(i == j) for j in range(len(refs))) for i in range(len(refs))),
        "format_version": version_for(len(refs), False),
        "gate": gate,
    }
    return old.model_copy(update=changes)


def _expert(generator: torch.Generator) -> dict[str, Tensor]:
    """Two sub-blocks in every layer above the trunk."""
    tensors = {}
    for layer in range(TRUNK, LAYERS):
        tensors[f"layers.{layer}.v_proj.blocks"] = torch.tensor([[0, 1], [1, 3]], dtype=torch.int32)
        tensors[f"layers.{layer}.v_proj.A"] = torch.randn(2, RANK, BLOCK_SIZE, generator=generator).bfloat16()
        tensors[f"layers.{layer}.v_proj.B"] = torch.randn(2, BLOCK_SIZE, RANK, generator=generator).bfloat16()
    return tensors


def _empty_gate(generator: torch.Generator) -> AnalyticGate:
    return AnalyticGate(
        projection=torch.randn(HIDDEN, WIDTH, generator=generator),
        content_weight=torch.randn(HIDDEN, generator=generator),
        content_bias=torch.zeros(1),
        base_mean=torch.zeros(WIDTH),
        base_whitener=torch.eye(WIDTH),
        count=torch.zeros(0),
        mean=torch.zeros(0, WIDTH),
        scatter=torch.zeros(WIDTH, WIDTH),
        threshold=torch.tensor([0.4]),
        sharpness=torch.tensor([20.0]),
        temperature=torch.tensor([1.0]),
        ridge=torch.tensor([0.05]),
        keep=torch.ones(1),
    )


def _stored(bank: Bank, gate: AnalyticGate) -> GateInfo:
    return GateInfo(kind="analytic", **bank.put_object(gate.tensors())._asdict())
