"""What a late start costs: each task's accuracy when its experts are switched on at the n-th content token.

The task is given and the gate is left out; the right column is the prompt's last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from adapters.benchmark.figures.opened import OpenedBank
from adapters.benchmark.figures.store import Chart, Figure
from adapters.calibrate import template_lengths
from adapters.data import DataError, Example, Tokens
from adapters.evaluate import exact_match, score_task

STARTS = (0, 4, 8, 16, 24, 32, 48, 64)


def forced(tokens: Sequence[Tokens], columns: Sequence[int], num_columns: int, start: int | None) -> list[torch.Tensor]:
    """The gate's weights `[T_i, columns]`: base, then the task's columns from position `start` on, at the latest from
    the prompt's last token; None: from there."""
    weights = []
    for found in tokens:
        last = len(found.prompt) - 1
        row = torch.zeros(len(found.ids) - 1, num_columns)
        row[last if start is None else min(start, last) :, list(columns)] = 1
        weights.append(row)
    return weights


def columns_of(opened: OpenedBank, task: int) -> tuple[list[int], int]:
    """The gate's columns that stand for a task, and how many there are."""
    if not opened.model.is_routed_by_expert:
        return [task], len(opened.manifest.tasks)
    return opened.manifest.experts_by_task[task], len(opened.manifest.experts)


def measure_starts(opened: OpenedBank, tests: Mapping[str, list[Example]], name: str) -> Figure:
    """Raises DataError for a task that the bank does not know."""
    known = [task.name for task in opened.manifest.tasks]
    unknown = sorted(set(tests) - set(known))
    if unknown or not tests:
        raise DataError(f"tasks {', '.join(unknown) or '(none)'} found; the bank knows {', '.join(known) or 'none'}")
    prefix = template_lengths(opened.model.backbone)[0]
    heads = ["gate", "always", *(f"{n}" for n in STARTS), "last"]
    values: dict[str, list[float]] = {}
    for task, examples in tests.items():
        data, index = opened.prepare(examples, task), known.index(task)
        found = [score_task(opened.model, opened.gate, data, index, task).accuracy]
        columns, num_columns = columns_of(opened, index)
        for start in (0, *(prefix + n for n in STARTS), None):
            data.weights = forced(data.tokens, columns, num_columns, start)
            found.append(exact_match(opened.model, data, f"{task} from {start}"))
        values[task] = found
    rows = tuple((task, *(f"{value:.1f}" for value in found)) for task, found in values.items())
    return Figure(
        name=f"starts-{name}",
        title="Accuracy by where the experts start",
        note="gate: its own decisions; always: from the very first token; then from the n-th content token; last: from "
        "the prompt's last token.",
        head=("task", *heads),
        rows=rows,
        chart=Chart(
            positions=tuple(heads[2:]),
            axis="content tokens before the experts start",
            unit=" %",
            low=0,
            high=100,
            series={task: tuple(found[2:]) for task, found in values.items()},
        ),
        values={task: list(found) for task, found in values.items()},
    )
