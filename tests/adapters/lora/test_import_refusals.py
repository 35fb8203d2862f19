"""What is not imported, and is refused before anything is written."""

import re
from pathlib import Path

import pytest

from adapters.base_model import fingerprint
from adapters.data import DataError
from adapters.learner import open_learner
from adapters.lora.config import LoraError
from adapters.lora.importing import Imported, ImportSettings, import_lora
from tests.adapters.learning import QUICK
from tests.adapters.lora.imports import NEW, PROMPTS, write_prompts

from .factory import lora_tensors, write_lora

pytestmark = pytest.mark.usefixtures("few_general_prompts")


def refused(bank: Path, model: Path, lora: Path, prompts: Path, settings: ImportSettings = NEW) -> str:
    before = sorted(bank.rglob("*"))
    with pytest.raises((LoraError, DataError)) as error:
        import_lora(bank, str(model), lora, "sums", prompts, settings)
    assert sorted(bank.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def some_lora(model: Path, path: Path, sites: list[tuple[int, str]], rank: int = 2) -> Path:
    return write_lora(path, lora_tensors(fingerprint(model), sites, rank), r=rank)


def test_layers_below_the_trunk_and_other_targets_are_refused(
    old_bank: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    low = some_lora(model, tmp_path / "low", [(layer, "v_proj") for layer in range(4)])
    message = refused(old_bank, model, low, prompts)
    assert "changes v_proj of layers 0 to 3" in message and "v_proj of layers 1 to 3" in message
    assert "layers 0 would be lost" in message and "layers_to_transform=1..3" in message
    assert "layer 0 belongs to the trunk of every bank" in refused(tmp_path / "new", model, low, prompts)
    wide = some_lora(model, tmp_path / "wide", [(2, "v_proj"), (3, "o_proj")])
    message = refused(old_bank, model, wide, prompts)
    assert "so o_proj would be lost; import it into a new bank with --trunk-layers 2 or less" in message
    done = import_lora(
        tmp_path / "fits", str(model), wide, "sums", prompts, ImportSettings(answer_tokens=2, adapt_steps=0)
    )
    assert done.manifest.targets == ("v_proj", "o_proj") and done.manifest.trunk_layers == 1
    deep = ImportSettings(trunk_layers=3)
    assert "layers 2 and v_proj" not in (message := refused(tmp_path / "new", model, wide, prompts, deep))
    assert "the new bank's experts are on v_proj, o_proj of layers 3 to 3, so layers 2 would be lost" in message


def test_blocks_that_do_not_fit_are_refused(
    model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ImportSettings(block_size=48)
    assert "block_size 48 does not divide v_proj's (64, 128)" in refused(tmp_path / "b", model, lora, prompts, odd)
    monkeypatch.setattr("adapters.lora.importing.MAX_OBJECT_BYTES", 1000)
    assert "larger --block-size" in refused(tmp_path / "b", model, lora, prompts)


def test_a_known_task_bad_prompts_and_another_layout_are_refused(
    imported: tuple[Path, Imported], old_bank: Path, model: Path, lora: Path, tmp_path: Path
) -> None:
    good = write_prompts(tmp_path / "good.jsonl", [{"prompt": p} for p in PROMPTS])
    assert "task 'sums' is already in generation 2" in refused(imported[0], model, lora, good)
    few = write_prompts(tmp_path / "few.jsonl", [{"prompt": p} for p in PROMPTS[:3]])
    assert "3 prompts found, at least 4" in refused(old_bank, model, lora, few)
    strange = write_prompts(tmp_path / "strange.jsonl", [{"prompt": "a"}, {"task": "others", "prompt": "b"}])
    assert re.search(r"strange.jsonl:2: task 'others' found", refused(old_bank, model, lora, strange))
    long = write_prompts(tmp_path / "long.jsonl", [{"prompt": "word " * 300}] * 5 + [{"prompt": "a"}])
    message = refused(old_bank, model, lora, long, ImportSettings(max_tokens=128))
    assert "1 prompts of at most 64 tokens found" in message
    message = refused(old_bank, model, lora, good, ImportSettings(block_size=64))
    assert "block_size 64 found, this bank was made with 32" in message


def test_a_bank_whose_gate_learns_with_its_experts_is_refused(
    model: Path, lora: Path, prompts: Path, tmp_path: Path
) -> None:
    open_learner(tmp_path / "bank", str(model), QUICK.model_copy(update={"gate": "softmax"}))
    assert "this bank's gate is softmax" in refused(tmp_path / "bank", model, lora, prompts)
