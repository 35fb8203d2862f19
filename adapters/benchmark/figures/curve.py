"""Does a task that shares with an earlier one learn faster? Accuracy by steps, after the first task and from scratch.

Every point is a training of its own with so many steps, learning-rate schedule included. Points are kept in
`OUT/curve/`, so that a killed measurement goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from adapters.benchmark.cells import write_atomically
from adapters.benchmark.figures.store import Chart, Figure
from adapters.benchmark.records import Record
from adapters.benchmark.settings import SetaSettings
from adapters.benchmark.tasks import TaskData
from adapters.learn import learn, open_learner


class Point(Record):
    accuracy: float


def measure_curve(
    first: TaskData, second: TaskData, model: str, steps: Sequence[int], settings: SetaSettings, out: Path
) -> Figure:
    """`settings.steps`: of the first task. Raises DataError, BankError, BaseModelError."""
    identity = json.dumps([first.digest, second.digest, model, settings.model_dump(mode="json")])
    folder = out / "curve" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    goal = _point(folder, "first", None, first, model, settings)
    after, scratch = [], []
    for count in steps:
        brief = settings.model_copy(update={"steps": count})
        after.append(_point(folder, f"after-{count}", folder / "first.bank", second, model, brief))
        scratch.append(_point(folder, f"scratch-{count}", None, second, model, brief))
    return curve_figure(first.name, second.name, steps, goal, after, scratch)


def _point(folder: Path, name: str, parent: Path | None, task: TaskData, model: str, settings: SetaSettings) -> float:
    """Learn `task` in a bank of its own, a copy of `parent` or a new one; the accuracy right after."""
    path, bank = folder / f"{name}.json", folder / f"{name}.bank"
    if path.is_file():
        return Point.model_validate_json(path.read_bytes()).accuracy
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(bank, ignore_errors=True)
    if parent is not None:
        shutil.copytree(parent, bank)
    learner = open_learner(bank, model, settings, settings.run)
    learn(learner, task.name, task.train, task.test)
    accuracy = learner.manifest.tasks[-1].metrics["accuracy"]
    write_atomically(path, Point(accuracy=accuracy).model_dump_json().encode())
    return accuracy


def reached(steps: Sequence[int], accuracies: Sequence[float], goal: float) -> int | None:
    """The fewest steps at which the goal is reached; None if it never is."""
    return next((count for count, accuracy in zip(steps, accuracies, strict=True) if accuracy >= goal), None)


def curve_figure(
    first: str, second: str, steps: Sequence[int], goal: float, after: Sequence[float], scratch: Sequence[float]
) -> Figure:
    rows = [
        (label, *(f"{value:.1f}" for value in values), str(reached(steps, values, goal) or "never"))
        for label, values in ((f"after {first}", after), ("from scratch", scratch))
    ]
    series = {f"after {first}": tuple(after), "from scratch": tuple(scratch), f"{first}, final": (goal,) * len(steps)}
    return Figure(
        name=f"curve-{first}-{second}",
        title=f"Learning {second}: accuracy by steps",
        note=f"Every point is a training of its own. Goal: {first}'s accuracy, {goal:.1f} %.",
        head=("", *(f"{count} steps" for count in steps), "goal reached at"),
        rows=tuple(rows),
        chart=Chart(positions=tuple(map(str, steps)), axis="steps", unit=" %", low=0, high=100, series=series),
        values={"steps": list(steps), "goal": goal, "after": list(after), "scratch": list(scratch)},
    )
