"""What every method offers to the loop that measures it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapters.benchmark.cells import Cell
from adapters.benchmark.records import Stage
from adapters.benchmark.tasks import TaskData
from adapters.data import DataError


@dataclass(frozen=True)
class Fit:
    """`loss`: at the end of training. `mean_tokens`: of a training example. `seconds`: None
    to take the call's own. `is_timed`: False for a task that an earlier, killed process learned, or a part of."""

    loss: float | None
    mean_tokens: float
    trained_parameters: int
    held_parameters: int
    seconds: float | None = None
    is_timed: bool = True


class Learner(Protocol):
    """A method in the middle of a sequence."""

    @property
    def groups(self) -> list[list[int]]: ...
    def restore(self, stages: tuple[Stage, ...]) -> None: ...
    def learn(self, group: int) -> Fit: ...
    def accuracy(self, task: int) -> float: ...
    def details(self, is_last: bool) -> dict[str, Any]: ...
    def save(self, num_groups: int) -> None: ...


def open_learner(cell: Cell, tasks: list[TaskData], model_dir: Path, work: Path) -> Learner:
    """Raises DataError if the method's library is not installed."""
    module, _, name = cell.method.kind.learner.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise DataError(f"{cell.method.label} needs peft; pip install 'seta[benchmark]'") from None
    return found(cell, tasks, model_dir, work)
