"""Banks of any number of tasks, and a LoRA adapter of the same size, made from a real bank."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.bank import Bank, ExpertInfo, Manifest, TaskInfo
from adapters.bank.manifest import version_for
from adapters.gate import AnalyticGate, load_gate, store_gate

MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def synthetic_bank(source: Bank, num_tasks: int, out: Path, seed: int = 0) -> Path:
    """A bank of `num_tasks` tasks: the source's tasks over and over, each with perturbed experts and statistics.

    Copies of a task lie close together in the gate's space, so its prompts spread over them: every task gets traffic.
    """
    manifest = source.manifest()
    gate = load_gate(manifest, source.load_gate(manifest))
    assert isinstance(gate, AnalyticGate), "the tasks' statistics are what is multiplied"
    generator = torch.Generator().manual_seed(seed)
    origins = [i % len(manifest.tasks) for i in range(num_tasks)]
    bank = Bank.create(out)
    experts, tasks = [], []
    for index, origin in enumerate(origins):
        name = f"task{index:03d}"
        info = next(e for e in manifest.experts if e.tasks == (manifest.tasks[origin].name,))
        ref = bank.put_object(_perturbed(source.load_expert(manifest, info.id), generator))
        experts.append(
            ExpertInfo(
                id=f"{name}.unique",
                kind="unique",
                tasks=(name,),
                rank=info.rank,
                num_blocks=info.num_blocks,
                **ref._asdict(),
            )
        )
        tasks.append(TaskInfo(name=name, generation=1, num_train=0, num_test=0))
    zero = _without_tasks(manifest, gate, bank)
    bank.publish(zero)
    fitted = _spread_gate(gate, origins, generator)
    bank.publish(
        zero.model_copy(
            update={
                "format_version": version_for(num_tasks, needs_version_2=False),
                "generation": 1,
                "parent": 0,
                "tasks": tuple(tasks),
                "experts": tuple(experts),
                "membership": tuple(tuple(int(i == j) for j in range(num_tasks)) for i in range(num_tasks)),
                "gate": store_gate(bank, fitted),
            }
        )
    )
    return out


def lora_adapter(manifest: Manifest, out: Path, rank: int, seed: int = 0) -> Path:
    """A random PEFT adapter on the bank's targets in the same layers, for vLLM's own LoRA."""
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(manifest.trunk_layers, manifest.base.num_layers):
        for target in manifest.targets:
            rows, columns = manifest.base.target_dims(target)
            parent = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            stem = f"base_model.model.model.layers.{layer}.{parent}.{target}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator).mul_(0.01).bfloat16()
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=generator).mul_(0.01).bfloat16()
    save_file(tensors, out / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(manifest.targets),
        "bias": "none",
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


def rank_rows_per_task(bank: Bank) -> int:
    """The highest rank that one task's delta can have on one projection, rounded up to one that vLLM's LoRA takes.

    That is the number of its rank rows, but never more than the matrix itself has rows or columns.
    """
    manifest = bank.manifest()
    full = max(min(manifest.base.target_dims(target)) for target in manifest.targets)
    largest = 0
    for info in manifest.experts:
        tensors = bank.load_expert(manifest, info.id)
        largest = max([largest, *(len(tensors[n]) * info.rank for n in tensors if n.endswith(".blocks"))])
    largest = min(largest, full)
    return next((rank for rank in MAX_LORA_RANKS if rank >= largest), MAX_LORA_RANKS[-1])


def _perturbed(expert: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    def noisy(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * 0.01
        return (tensor.float() * (1 + noise)).to(tensor.dtype)

    return {name: tensor if name.endswith("blocks") else noisy(tensor) for name, tensor in expert.items()}


def _without_tasks(manifest: Manifest, gate: AnalyticGate, bank: Bank) -> Manifest:
    width = gate.width
    empty = replace(gate, count=torch.zeros(0), mean=torch.zeros(0, width), scatter=torch.zeros(width, width))
    fresh = {
        "generation": 0,
        "parent": None,
        "created": datetime.now(UTC),
        "tasks": (),
        "experts": (),
        "membership": (),
        "accuracy_matrix": (),
        "scores": None,  # nothing is learned into it
    }
    return manifest.model_copy(update=fresh | {"gate": store_gate(bank, empty)})


def _spread_gate(gate: AnalyticGate, origins: list[int], generator: torch.Generator) -> AnalyticGate:
    """One mean for every copy, a tenth of the tasks' own spread away from the original."""
    spread = (gate.scatter.diagonal() / gate.count.sum()).sqrt()
    noise = torch.randn(len(origins), gate.width, generator=generator) * spread * 0.1
    return replace(gate, count=gate.count[origins], mean=gate.mean[origins] + noise)
