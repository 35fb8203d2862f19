"""A LoRA on the tiny model, and a bank that has learned and imported. Tests leave them as they are."""

from pathlib import Path

import pytest

from adapters.data import Example
from adapters.learn import learn_tasks
from adapters.lora.importing import Imported, import_lora
from adapters.settings import LearnSettings
from tests.adapters.conftest import with_few_general_prompts
from tests.adapters.lora.imports import NEW, PROMPTS, copy_of, write_prompts

from .factory import train_like_peft


@pytest.fixture(scope="session")
def model(tiny_model: str) -> Path:
    return Path(tiny_model)


@pytest.fixture(scope="session")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_like_peft(model, tmp_path_factory.mktemp("lora") / "sums")


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])


@pytest.fixture(scope="session")
def old_bank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that has learned a task of its own: v_proj above layer 1, blocks of 32."""
    path = tmp_path_factory.mktemp("learned") / "bank"
    things = ("sky", "sea", "grass", "rose", "wall", "car", "house", "shirt")
    tasks = {
        "colours": [Example(task="colours", prompt=f"What colour is the {thing}?", answer="blue") for thing in things]
    }
    settings = LearnSettings(
        steps=2, batch_size=4, block_size=32, rank=4, trunk_layers=1, targets=("v_proj",), dtype="float32"
    )
    with with_few_general_prompts():
        learn_tasks(path, str(model), tasks, {}, settings)
    return path


@pytest.fixture(scope="session")
def imported(
    old_bank: Path, model: Path, lora: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Imported]:
    bank_dir = copy_of(old_bank, tmp_path_factory.mktemp("imported"))
    with with_few_general_prompts():
        return bank_dir, import_lora(bank_dir, str(model), lora, "sums", prompts, NEW)
