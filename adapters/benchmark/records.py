"""What a cell is about and what was measured in it, as it stands in the JSON files."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

from adapters.benchmark.tasks import TaskData


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(Record):
    """What the cells of one comparison have in common."""

    sequence: str
    tasks: tuple[str, ...]
    data_sha256: str
    num_train: tuple[int, ...]
    num_test: tuple[int, ...]
    seed: int
    steps: int
    base_sha256: str


class Routing(Record):
    """How a gate decides; percent points. `confusion[i][j]`: share of task i's prompts that task j leads at their end;
    the last column is "base". `by_position[n]`: right after n content tokens, all tasks together."""

    confusion: tuple[tuple[float, ...], ...]
    by_position: dict[int, float]


class Stage(Record):
    """What was measured after one more task (for `joint`: after all of them).

    `accuracy`: exact match in percent points, one entry for each task learned so far. `seconds`: learning alone; None
    where a killed process took the number with it. `tokens`: run through the model in training, padding left out.
    `trained_parameters`: for this task; `held_parameters`: kept to answer with, after it.
    `peak_bytes`: the process's largest resident set while it learned. `blocks`: sub-blocks that the experts hold, and
    what one set for each task would hold.
    """

    tasks: tuple[str, ...]
    accuracy: tuple[float, ...]
    seconds: float | None
    evaluation_seconds: float
    tokens: int
    loss: float | None
    trained_parameters: int
    held_parameters: int
    peak_bytes: int
    blocks: tuple[int, int] | None = None
    routing: Routing | None = None
    routing_stripped: Routing | None = None


class CellResult(Record):
    key: str
    method: str
    kind: str
    settings: dict[str, object]
    run: Run
    stages: tuple[Stage, ...]
    finished: str
    versions: dict[str, str]


class Progress(Record):
    stages: tuple[Stage, ...] = ()


def describe(sequence: str, tasks: list[TaskData], seed: int, steps: int, base_sha256: str) -> Run:
    digest = hashlib.sha256("\n".join(task.digest for task in tasks).encode()).hexdigest()
    return Run(
        sequence=sequence,
        tasks=tuple(task.name for task in tasks),
        data_sha256=digest,
        num_train=tuple(len(task.train) for task in tasks),
        num_test=tuple(len(task.test) for task in tasks),
        seed=seed,
        steps=steps,
        base_sha256=base_sha256,
    )
