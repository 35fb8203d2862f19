"""Run one cell: learn a task, evaluate every task learned so far, keep the result, go on."""

from __future__ import annotations

import contextlib
import gc
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adapters.benchmark.cells import Cell, CellStore
from adapters.benchmark.learner import Learner, open_learner
from adapters.benchmark.memory import peak_bytes, reset_peak
from adapters.benchmark.records import CellResult, Progress, Stage
from adapters.benchmark.tasks import TaskData
from adapters.progress import console

PACKAGES = ("seta", "torch", "transformers", "peft")


def run_cell(cell: Cell, tasks: list[TaskData], model_dir: Path, store: CellStore) -> CellResult:
    """Measure a cell from where it was left; the caller holds its lock. A killed run loses at most the task it was in.

    Raises DataError, BankError, BaseModelError.
    """
    gc.collect()  # the model of the cell before this one
    progress = store.progress(cell)
    learner = open_learner(cell, tasks, model_dir, store.work_dir(cell))
    learner.restore(progress.stages)
    groups = learner.groups
    if progress.stages:
        console.print(f"{cell.method.label}: going on after {len(progress.stages)} of {len(groups)} tasks")
    for index in range(len(progress.stages), len(groups)):
        console.rule(f"{cell.method.label}: {', '.join(tasks[i].name for i in groups[index])}")
        stage = run_stage(cell, tasks, learner, index)
        learner.save(index + 1)
        progress = Progress(stages=(*progress.stages, stage))
        store.save_progress(cell, progress)
    result = CellResult(
        key=cell.key,
        method=cell.method.label,
        kind=cell.method.kind.name,
        settings=cell.method.settings.model_dump(mode="json"),
        run=cell.run,
        stages=progress.stages,
        finished=datetime.now(UTC).replace(microsecond=0).isoformat(),
        versions=versions(),
    )
    store.finish(cell, result)
    return result


def run_stage(cell: Cell, tasks: list[TaskData], learner: Learner, index: int) -> Stage:
    """Learn one group of tasks and evaluate all tasks so far."""
    groups = learner.groups
    reset_peak()
    start = time.monotonic()
    fit = learner.learn(index)
    learned = time.monotonic()
    peak = peak_bytes()
    so_far = [task for group in groups[: index + 1] for task in group]
    accuracy = tuple(round(learner.accuracy(task), 2) for task in so_far)
    details = learner.details(index + 1 == len(groups))
    seconds = fit.seconds if fit.seconds is not None else learned - start
    settings = cell.method.settings.model_dump()
    examples_seen = settings["steps"] * settings["batch_size"] * len(groups[index])
    stage = Stage(
        tasks=tuple(tasks[i].name for i in groups[index]),
        accuracy=accuracy,
        seconds=round(seconds, 2) if fit.is_timed else None,
        evaluation_seconds=round(time.monotonic() - learned, 2),
        tokens=round(examples_seen * fit.mean_tokens),
        loss=fit.loss,
        trained_parameters=fit.trained_parameters,
        held_parameters=fit.held_parameters,
        peak_bytes=peak,
        **details,
    )
    shown = ", ".join(f"{tasks[i].name} {value:.1f}" for i, value in zip(so_far, accuracy, strict=True))
    console.print(f"{cell.method.label}: {shown} % right", highlight=False)
    return stage


def versions() -> dict[str, str]:
    """Of everything that computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
