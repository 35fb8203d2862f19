"""Tiny banks for tests. `make_bank(tmp_path)` is a whole one: generation 0, then one generation a task."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.bank import Bank, BaseModelInfo, ExpertInfo, GateInfo, Manifest, ObjectRef, TaskInfo

BASE = BaseModelInfo(
    architecture="TinyForCausalLM",
    num_layers=4,
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=4,
    num_kv_heads=2,
    head_size=4,
    vocab_size=64,
    weights_sha256="ab" * 32,
)
TRUNK_LAYERS = 1
BLOCK_SIZE = 4
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_tensors(
    blocks: Mapping[tuple[int, str], Sequence[tuple[int, int]]] | None = None,
    rank: int = 2,
    block_size: int = BLOCK_SIZE,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """An expert's tensors with random A and B; `blocks` maps (layer, target) to sorted (row, column) pairs."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for (layer, target), pairs in (blocks or {(1, "v_proj"): [(0, 0), (1, 3)], (3, "v_proj"): [(0, 2)]}).items():
        name, n = f"layers.{layer}.{target}", len(pairs)
        tensors[f"{name}.blocks"] = torch.tensor(pairs, dtype=torch.int32).reshape(n, 2)
        tensors[f"{name}.A"] = torch.randn(n, rank, block_size, generator=generator).to(dtype)
        tensors[f"{name}.B"] = torch.randn(n, block_size, rank, generator=generator).to(dtype)
    return tensors


def make_gate(num_tasks: int, width: int = 8) -> dict[str, Tensor]:
    """Stand-in gate tensors: the bank checks only that they are finite."""
    return {"weight": torch.arange((num_tasks + 1) * width, dtype=torch.float32).reshape(num_tasks + 1, width)}


def expert_info(expert_id: str, tasks: Sequence[str], tensors: Mapping[str, Tensor], ref: ObjectRef) -> ExpertInfo:
    """The manifest's entry for tensors that `put_object` stored as `ref`."""
    return ExpertInfo(
        id=expert_id,
        kind="unique" if len(tasks) == 1 else "shared",
        tasks=tuple(tasks),
        rank=next(tensor.shape[1] for name, tensor in tensors.items() if name.endswith(".A")),
        num_blocks=sum(len(tensor) for name, tensor in tensors.items() if name.endswith(".blocks")),
        **ref._asdict(),
    )


def empty_manifest(bank: Bank, base: BaseModelInfo = BASE, **changes: Any) -> Manifest:
    """Generation 0, not yet published; its gate is in the bank."""
    gate = GateInfo(kind="analytic", **bank.put_object(make_gate(0))._asdict())
    fields: dict[str, Any] = {
        "generation": 0,
        "parent": None,
        "created": CREATED,
        "base": base,
        "trunk_layers": TRUNK_LAYERS,
        "block_size": BLOCK_SIZE,
        "targets": ("v_proj",),
        "gate": gate,
    }
    return Manifest(**(fields | changes))


def next_manifest(bank: Bank, parent: Manifest, task: str, tensors: Mapping[str, Tensor] | None = None) -> Manifest:
    """The generation after the newest that learns one task with one unique expert; only its objects are stored."""
    tensors = tensors or make_tensors(seed=len(parent.tasks) + 1)
    number = max(bank.generations()) + 1
    expert = expert_info(f"{task}.unique", [task], tensors, bank.put_object(tensors))
    gate = GateInfo(kind=parent.gate.kind, **bank.put_object(make_gate(len(parent.tasks) + 1))._asdict())
    columns = len(parent.experts)
    fields = dict(parent) | {
        "generation": number,
        "parent": parent.generation,
        "tasks": (*parent.tasks, TaskInfo(name=task, generation=number, num_train=8, num_test=4)),
        "experts": (*parent.experts, expert),
        "membership": (*((*row, 0) for row in parent.membership), (0,) * columns + (1,)),
        "gate": gate,
        "accuracy_matrix": (*parent.accuracy_matrix, tuple(90.0 - i for i in range(len(parent.tasks) + 1))),
    }
    return Manifest(**fields)


def make_bank(path: Path, tasks: Sequence[str] = ("alpha", "beta"), base: BaseModelInfo = BASE, **changes: Any) -> Bank:
    """A bank in `path` (new or empty) whose newest generation knows all of `tasks`; `changes` go to generation 0."""
    bank = Bank.create(path)
    bank.publish(empty_manifest(bank, base, **changes))
    for task in tasks:
        bank.publish(next_manifest(bank, bank.manifest(), task))
    return bank


def write_manifest(bank: Bank, manifest: Manifest) -> None:
    """Past all that `publish` verifies."""
    (bank.root / f"generations/{manifest.generation:05d}.json").write_bytes(manifest.to_bytes())
