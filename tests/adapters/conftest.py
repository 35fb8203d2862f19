"""Fixtures of the tests that learn: a tiny model, and a gate that is calibrated on few prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.calibrate import general_prompts
from adapters.learn import learn_tasks
from tests.adapters.learning import SETTINGS, TEST, TRAIN
from tests.tiny import make_tiny_model


@contextmanager
def with_few_general_prompts() -> Iterator[None]:
    prompts = general_prompts()[:40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapters.learner.general_prompts", lambda: prompts)
        yield


@pytest.fixture(scope="module")
def few_general_prompts() -> Iterator[None]:
    with with_few_general_prompts():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def bank_dir(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tasks, learned well, in one call. Tests leave it as it is."""
    path = tmp_path_factory.mktemp("learned") / "bank"
    with with_few_general_prompts():
        learn_tasks(path, tiny_model, TRAIN, TEST, SETTINGS)
    return path
