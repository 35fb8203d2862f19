"""Held-out prompts of the demo tasks and general prompts, for the tests on the real small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.data import read_examples, read_prompts

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def held_out(demo_tests: list[Path]) -> dict[str, list[str]]:
    """Every demo task's held-out prompts."""
    return {path.parent.name: [str(example.prompt) for example in read_examples(path)] for path in demo_tests}


@pytest.fixture(scope="session")
def general() -> list[str]:
    """Prompts of no task; none of them calibrated the gate."""
    return read_prompts(REPO / "tests/data/general_prompts.jsonl")
