"""A bank of very many tiny tasks on disk, for what a bank costs by itself: no model, no engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from adapters.bank import Bank, BaseModelInfo, ExpertInfo, Manifest, ObjectRef
from adapters.gate import AnalyticGate, store_gate
from seta_runtime.bench.random_parts import one_expert_each, random_gate

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
    gate = random_gate(num_tasks, HIDDEN, WIDTH, generator)
    manifest = Manifest(
        generation=0,
        parent=None,
        created=CREATED,
        base=BASE,
        trunk_layers=TRUNK,
        block_size=BLOCK_SIZE,
        targets=("v_proj",),
        gate=store_gate(bank, _of_first(gate, 0)),
    )
    bank.publish(manifest)
    experts = [_info(f"task{i:04d}", bank.put_object(_expert(generator))) for i in range(num_tasks)]
    for count in (num_tasks - 1, num_tasks):
        manifest = one_expert_each(manifest, experts[:count], store_gate(bank, _of_first(gate, count)))
        bank.publish(manifest)
    return bank


def _of_first(gate: AnalyticGate, count: int) -> AnalyticGate:
    """The gate of the first `count` tasks."""
    return replace(gate, count=gate.count[:count], mean=gate.mean[:count], scatter=torch.eye(WIDTH) * 100 * count)


def _info(task: str, ref: ObjectRef) -> ExpertInfo:
    num_blocks = 2 * (LAYERS - TRUNK)
    return ExpertInfo(
        id=f"{task}.unique", kind="unique", tasks=(task,), rank=RANK, num_blocks=num_blocks, **ref._asdict()
    )


def _expert(generator: torch.Generator) -> dict[str, Tensor]:
    """Two sub-blocks in every layer above the trunk."""
    tensors = {}
    for layer in range(TRUNK, LAYERS):
        tensors[f"layers.{layer}.v_proj.blocks"] = torch.tensor([[0, 1], [1, 3]], dtype=torch.int32)
        tensors[f"layers.{layer}.v_proj.A"] = torch.randn(2, RANK, BLOCK_SIZE, generator=generator).bfloat16()
        tensors[f"layers.{layer}.v_proj.B"] = torch.randn(2, BLOCK_SIZE, RANK, generator=generator).bfloat16()
    return tensors
