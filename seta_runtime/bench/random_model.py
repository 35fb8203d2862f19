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

from adapters.bank import Bank, ExpertInfo, Manifest
from adapters.base_model import fingerprint
from adapters.gate import store_gate
from seta_runtime.bench.random_parts import one_expert_each, random_gate

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
        gate=store_gate(bank, random_gate(0, base.hidden_size, width, generator)),
    )
    bank.publish(manifest)
    experts = [_expert(bank, manifest, f"task{i:03d}", generator) for i in range(num_tasks)]
    gate = store_gate(bank, random_gate(num_tasks, base.hidden_size, width, generator))
    bank.publish(one_expert_each(manifest, experts, gate))
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
