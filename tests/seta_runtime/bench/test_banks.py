"""The benchmark's own inputs: synthetic banks that the runtime accepts, and a LoRA of the same size."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.bank import Bank
from adapters.gate import load_gate
from seta_runtime.bench.banks import lora_adapter, rank_rows_per_task, synthetic_bank
from seta_runtime.bench.engines import engine_modules


@pytest.fixture(scope="module")
def source(demo_bank: Path) -> Bank:
    return Bank.open(demo_bank)


@pytest.fixture(scope="module")
def made(source: Bank, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return Bank.open(synthetic_bank(source, 6, tmp_path_factory.mktemp("bench") / "bank"))


def test_a_synthetic_bank_is_whole(made: Bank, source: Bank) -> None:
    manifest = made.manifest()
    assert made.verify() == []
    assert len(manifest.tasks) == len(manifest.experts) == 6
    assert manifest.layout == source.manifest().layout
    assert len({expert.object for expert in manifest.experts}) == 6, "every task has experts of its own"


def test_its_copies_of_a_task_share_the_tasks_prompts(made: Bank, source: Bank) -> None:
    """Prefix means of the first task spread over its copies, and over no other task."""
    old = load_gate(source.manifest(), source.load_gate(source.manifest()))
    new = load_gate(made.manifest(), made.load_gate(made.manifest()))
    spread = (old.scatter.diagonal() / old.count.sum()).sqrt()
    pooled = old.mean[0] + torch.randn(200, old.width, generator=torch.Generator().manual_seed(1)) * spread * 0.2
    chosen = new.decide(pooled).argmax(-1)
    assert set(chosen.tolist()) == {0, 4}, "tasks 0 and 4 of 6 are copies of the first of 4"


def test_the_lora_has_the_banks_targets_above_its_trunk(source: Bank, tmp_path: Path) -> None:
    manifest, rank = source.manifest(), rank_rows_per_task(source)
    tensors = load_file(lora_adapter(manifest, tmp_path / "adapter", rank) / "adapter_model.safetensors")
    layers = {int(name.split(".")[4]) for name in tensors}
    assert layers == set(range(manifest.trunk_layers, manifest.base.num_layers))
    rows, columns = manifest.base.target_dims(*manifest.targets)
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    assert shapes == {(rank, columns), (rows, rank)}


def test_the_engines_modules_are_those_that_hold_the_targets(source: Bank) -> None:
    manifest = source.manifest()
    targets: dict[tuple[str, ...], tuple[str, ...]] = {
        ("v_proj", "q_proj"): ("qkv_proj",),
        ("down_proj", "o_proj"): ("down_proj", "o_proj"),
        ("gate_proj", "v_proj"): ("gate_up_proj", "qkv_proj"),
    }
    for asked, expected in targets.items():
        assert engine_modules(manifest.model_copy(update={"targets": asked})) == expected
