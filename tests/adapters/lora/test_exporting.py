"""A task's experts, unique and shared, as a LoRA: PEFT's logits with it are the routed model's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest
from adapters.bank.cli import app
from adapters.base_model import fingerprint
from adapters.generate import Always
from adapters.lora.exporting import export_lora
from adapters.lora.files import read_adapter
from adapters.lora.importing import to_expert
from adapters.routed import RoutedModel

from ..bank.factory import empty_manifest, expert_info, make_tensors, next_manifest
from .factory import load_base, load_peft

ROOT = Path(__file__).parents[3]
BLOCKS = {
    "one": {(1, "v_proj"): [(0, 0), (0, 3), (1, 1)], (3, "v_proj"): [(1, 2)], (2, "down_proj"): [(0, 5), (3, 1)]},
    "other": {(1, "v_proj"): [(0, 1)]},
    "both": {(1, "v_proj"): [(0, 0), (1, 3)], (2, "o_proj"): [(2, 2)]},
}


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Path:
    return Path(tiny_model)


@pytest.fixture(scope="module")
def bank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Two tasks, each with an expert of its own, and one that both share."""
    bank = Bank.create(tmp_path_factory.mktemp("banks") / "bank")
    layout: dict[str, Any] = {"block_size": 32, "targets": ("v_proj", "o_proj", "down_proj")}
    layout["settings"] = {"model": "org/tiny"}
    bank.publish(empty_manifest(bank, fingerprint(model), **layout))
    for name in ("one", "other"):
        tensors = make_tensors(BLOCKS[name], rank=3, block_size=32, dtype=torch.bfloat16, seed=len(name))  # type: ignore[arg-type]
        bank.publish(next_manifest(bank, bank.manifest(), name, scaled(tensors)))
    shared = scaled(make_tensors(BLOCKS["both"], rank=5, block_size=32, seed=9))  # type: ignore[arg-type]
    info = expert_info("both.shared", ["one", "other"], shared, bank.put_object(shared))
    old = bank.manifest()
    changes = {
        "generation": 3,
        "parent": 2,
        "experts": (*old.experts, info),
        "membership": tuple((*row, 1) for row in old.membership),
    }
    bank.publish(Manifest(**(dict(old) | changes)))
    return bank


def scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor if name.endswith("blocks") else tensor * 0.2 for name, tensor in tensors.items()}


@torch.no_grad()
def routed_logits(bank: Bank, model: Path, ids: torch.Tensor, task: int) -> torch.Tensor:
    manifest = bank.manifest()
    routed = RoutedModel.of(Backbone.load(model, "float32"), bank, manifest)
    for expert in routed.experts.values():
        for (layer, target), delta in expert.items():
            assert routed.sites[layer, target].base.weight.dtype == delta.a.dtype == torch.float32
    routed.route(Always(task, len(manifest.tasks)).decide(torch.zeros(*ids.shape, 1)))
    return routed.backbone.logits(routed.backbone.run(routed.backbone.embed(ids), 0, 4))


@pytest.mark.parametrize(("task", "index"), [("one", 0), ("other", 1)])
@torch.no_grad()
def test_peft_gives_the_logits_of_the_routed_model(
    task: str, index: int, bank: Bank, model: Path, tmp_path: Path
) -> None:
    done = export_lora(bank.root, task, tmp_path / "lora")
    assert done.experts == (f"{task}.unique", "both.shared") and done.generation == 3
    ids = torch.randint(300, (2, 23), generator=torch.Generator().manual_seed(0))
    expected = routed_logits(bank, model, ids, index)
    found = load_peft(model, tmp_path / "lora")(ids).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(load_base(model)(ids).logits, expected, atol=0.3)


def test_the_rank_is_the_smallest_and_the_zeros_stay(bank: Bank, model: Path, tmp_path: Path) -> None:
    """`one` on layer 1: block row 0 holds ranks 3 + 3 + 5, block row 1 3 + 5: 8 + 8 by columns shared and not."""
    export_lora(bank.root, "one", tmp_path / "lora")
    base = fingerprint(model)
    deltas = read_adapter(tmp_path / "lora", base).deltas
    ranks = {site: len(delta.a) for site, delta in deltas.items()}
    assert ranks == {(1, "v_proj"): 19, (3, "v_proj"): 3, (2, "down_proj"): 6, (2, "o_proj"): 5}
    for site, delta in deltas.items():
        assert ranks[site] == int(torch.linalg.matrix_rank(delta.dense(), rtol=1e-6))
    only = deltas[3, "v_proj"].dense()
    assert not only[:32].any() and not only[:, :64].any() and not only[:, 96:].any()


def test_another_generation(bank: Bank, model: Path, tmp_path: Path) -> None:
    done = export_lora(bank.root, "one", tmp_path / "lora", generation=1)
    assert done.experts == ("one.unique",) and done.generation == 1
    assert (2, "o_proj") not in done.deltas


def test_what_was_exported_can_be_imported(bank: Bank, model: Path, tmp_path: Path) -> None:
    done = export_lora(bank.root, "one", tmp_path / "lora")
    expert = to_expert(read_adapter(tmp_path / "lora", fingerprint(model)).deltas, 32)
    for site, delta in done.deltas.items():
        torch.testing.assert_close(expert[site].dense().detach().double(), delta.dense(), atol=1e-5, rtol=1e-5)


def test_the_files(bank: Bank, tmp_path: Path) -> None:
    export_lora(bank.root, "other", tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny" and config["bias"] == "none"
    assert config["r"] == config["lora_alpha"] and config["rank_pattern"] == config["alpha_pattern"]
    tensors = load_file(tmp_path / "lora/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(name.startswith("base_model.model.model.layers.") for name in tensors)


def test_cli(bank: Bank, tmp_path: Path) -> None:
    def seta_bank(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    done = seta_bank("export-lora", bank.root, tmp_path / "lora", "--task", "other")
    assert done.exit_code == 0, done.output
    assert done.stdout == "generation 3: other.unique, both.shared as a LoRA of rank 13 on 2 projections\n"
    for arguments, message in (
        ([bank.root, tmp_path / "lora", "--task", "other"], "exists; remove it, or choose another name"),
        ([bank.root, tmp_path / "new", "--task", "third"], "generation 3 has no task 'third'; it has: one, other"),
        ([bank.root, tmp_path / "new", "--task", "other", "-g", 1], "generation 1 has no task 'other'"),
        ([tmp_path / "none", tmp_path / "new", "--task", "other"], "'none' is not a bank"),
    ):
        failed = seta_bank("export-lora", *arguments)
        assert failed.exit_code == 1 and failed.stdout == ""
        assert failed.stderr.splitlines()[-1].startswith("seta: ") and message in failed.stderr
    assert not (tmp_path / "new").exists()


def test_the_banks_command_line_stays_light() -> None:
    """The two commands need transformers; looking into a bank does not."""
    code = "import adapters.bank.cli, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
