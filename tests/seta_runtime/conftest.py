"""Held-out prompts of the demo tasks and general prompts, for the tests on the real small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapters.bank import Bank
from adapters.data import read_examples, read_prompts

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def held_out(demo_bank: Path, model_dir: Path) -> dict[str, list[str]]:
    """Every demo task's held-out prompts; built from their packages if they are not there yet."""
    folder = REPO / "build/demo/tasks"
    paths = {task.name: folder / task.name / "test.jsonl" for task in Bank.open(demo_bank).manifest().tasks}
    if not all(path.is_file() for path in paths.values()):
        subprocess.run([sys.executable, "-m", "adapters.demo.build", "--out", str(folder)], cwd=REPO, check=True)
    return {name: [str(example.prompt) for example in read_examples(path)] for name, path in paths.items()}


@pytest.fixture(scope="session")
def general() -> list[str]:
    """Prompts of no task; none of them calibrated the gate."""
    return read_prompts(REPO / "tests/data/general_prompts.jsonl")
