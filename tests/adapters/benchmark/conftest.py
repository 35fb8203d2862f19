"""Two tiny tasks on disk, the tiny model, and cells over both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.benchmark.cells import CellStore
from adapters.benchmark.tasks import TaskData, read_sequence
from adapters.calibrate import general_prompts
from adapters.data import Example
from tests.adapters.benchmark.factory import SEQUENCE, THINGS, write_task
from tests.tiny import make_tiny_model


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    prompts = {
        "colours": [(f"What colour is this?\nThing: the {thing}\nColour:", "blue") for thing in THINGS],
        "sums": [(f"Add the numbers.\n{n} and {n + 3}", "seven" if n % 2 else "eight") for n in range(12)],
        "names": [(f"Whose {thing} is it?", "Ann") for thing in THINGS],
    }
    for task, pairs in prompts.items():
        write_task(path / task, [Example(task=task, prompt=p, answer=a) for p, a in pairs], num_test=4)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package", autouse=True)
def few_general_prompts() -> Iterator[None]:
    prompts = general_prompts()[:40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapters.learner.general_prompts", lambda: prompts)
        yield


@pytest.fixture(scope="session")
def tasks(data_dir: Path) -> list[TaskData]:
    return read_sequence(data_dir, SEQUENCE, 100, 100, seed=0)


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "cells")
