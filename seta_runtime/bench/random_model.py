"""A model of a real one's shape with random weights, and a random bank for it: speed and memory need no knowledge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.bank import Bank, ExpertInfo, GateInfo, Manifest, TaskInfo
from adapters.bank.manifest import version_for
from adapters.base_model import fingerprint
from adapters.gate import AnalyticGate

Shape = Literal["qwen3-4b", "tiny"]
SHARD_BYTES = 1 << 30
RANK, DENSITY, GATE_WIDTH = 32, 0.25, 192
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "qwen3-4b": (
        {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        128,
    ),
    "tiny": (
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
        },
        32,
    ),
}
"""Configuration and sub-block edge."""


def random_model(path: Path, shape: Shape) -> Path:
    """Write a Qwen3 in bfloat16, a shard at a time: no more than one is ever in memory. Returns `path`."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**SHAPES[shape][0], tie_word_embeddings=True, max_position_embeddings=4096)
    config.architectures = ["Qwen3ForCausalLM"]
    config.dtype = torch.bfloat16
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    with torch.device("meta"):
        parameters = dict(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).named_parameters())
    generator = torch.Generator().manual_seed(0)
    shard_of: dict[str, str] = {}
    for number, shard in enumerate(_shards(parameters, generator)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        shard_of |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(p.numel() * 2 for p in parameters.values())}, "weight_map": shard_of}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _shards(parameters: dict[str, torch.nn.Parameter], generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if shard and sum(t.nbytes for t in shard.values()) + 2 * parameter.numel() > SHARD_BYTES:
            yield shard
            shard = {}
        values = torch.empty(parameter.shape, dtype=torch.bfloat16)
        shard[name] = values.fill_(1.0) if parameter.ndim == 1 else values.normal_(0, 0.02, generator=generator)
    yield shard


def random_bank(path: Path, model_dir: Path, shape: Shape, num_tasks: int) -> Bank:
    """Generation 0, and generation 1 with `num_tasks` tasks, each with a quarter of V's sub-blocks above the trunk.

    Its gate knows every token, so every token is routed.
    """
    base, block_size = fingerprint(model_dir), SHAPES[shape][1]
    bank, generator = Bank.create(path), torch.Generator().manual_seed(0)
    width = min(GATE_WIDTH, base.num_kv_heads * base.head_size)
    manifest = Manifest(
        generation=0,
        parent=None,
        created=datetime.now(UTC),
        base=base,
        trunk_layers=max(1, base.num_layers // 5),
        block_size=block_size,
        targets=("v_proj",),
        gate=_stored(bank, _gate(0, base.hidden_size, width, generator)),
    )
    bank.publish(manifest)
    names = [f"task{i:03d}" for i in range(num_tasks)]
    changes = {
        "format_version": version_for(num_tasks, False),
        "generation": 1,
        "parent": 0,
        "tasks": tuple(TaskInfo(name=name, generation=1, num_train=0, num_test=0) for name in names),
        "experts": tuple(_expert(bank, manifest, name, generator) for name in names),
        "membership": tuple(tuple(int(i == j) for j in range(num_tasks)) for i in range(num_tasks)),
        "gate": _stored(bank, _gate(num_tasks, base.hidden_size, width, generator)),
    }
    bank.publish(manifest.model_copy(update=changes))
    return bank


def _expert(bank: Bank, manifest: Manifest, task: str, generator: torch.Generator) -> ExpertInfo:
    size = manifest.block_size
    rows, columns = (dim // size for dim in manifest.base.target_dims("v_proj"))
    count = max(1, int(DENSITY * rows * columns))
    layers = range(manifest.trunk_layers, manifest.base.num_layers)
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        chosen = torch.randperm(rows * columns, generator=generator)[:count].sort().values
        stem = f"layers.{layer}.v_proj"
        tensors[f"{stem}.blocks"] = torch.stack([chosen // columns, chosen % columns], dim=1).to(torch.int32)
        tensors[f"{stem}.A"] = torch.randn(count, RANK, size, generator=generator).mul_(size**-0.5).bfloat16()
        tensors[f"{stem}.B"] = torch.randn(count, size, RANK, generator=generator).mul_(0.01).bfloat16()
    ref = bank.put_object(tensors)
    return ExpertInfo(
        id=f"{task}.unique",
        kind="unique",
        tasks=(task,),
        rank=RANK,
        num_blocks=count * len(layers),
        **ref._asdict(),
    )


def _gate(num_tasks: int, hidden: int, width: int, generator: torch.Generator) -> AnalyticGate:
    return AnalyticGate(
        projection=torch.randn(hidden, width, generator=generator) / hidden**0.5,
        content_weight=torch.zeros(hidden),
        content_bias=torch.ones(1),
        base_mean=torch.zeros(width),
        base_whitener=torch.eye(width),
        count=torch.full((num_tasks,), 100.0),
        mean=torch.randn(num_tasks, width, generator=generator),
        scatter=torch.eye(width) * 100 * num_tasks,
        threshold=torch.tensor([-2.0]),  # below any cosine
        sharpness=torch.tensor([20.0]),
        temperature=torch.tensor([0.01]),  # sure of one task
        ridge=torch.tensor([0.05]),
        keep=torch.ones(1),
    )


def _stored(bank: Bank, gate: AnalyticGate) -> GateInfo:
    return GateInfo(kind="analytic", **bank.put_object(gate.tensors())._asdict())
