"""The report of a load test, as it is written to `report.json`: format version 1.

Milliseconds and seconds, in names that end so; null where nothing was measured. Every latency counts from the moment
the request was due.
"""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ..errors import LoadTestError
from ..stages import Stage

FORMAT_VERSION = 1
MAX_REPORT_BYTES = 256 << 20


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


Number = Annotated[float | None, AfterValidator(_finite)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(Model):
    count: int
    mean_ms: Number
    p50_ms: Number
    p95_ms: Number
    p99_ms: Number
    max_ms: Number


class Accuracy(Model):
    """Answers compared with the workload's own, character by character, white space at the ends ignored."""

    asked: int
    right: int
    percent: float


class Group(Model):
    """Some of a stage's requests: sent = completed + failed + unfinished (in flight when it was interrupted)."""

    sent: int
    completed: int
    failed: int
    unfinished: int
    good: int | None
    prompt_tokens: int
    output_tokens: int
    requests_per_second: Number
    good_per_second: Number
    tokens_per_second: Number
    ttft: Latency
    itl: Latency
    e2e: Latency
    accuracy: Accuracy | None


class ErrorKind(Model):
    kind: str
    count: int
    example: str


class Moment(Model):
    """A slice of the timeline; `at_seconds` after the test's start. Requests when due, output when it came."""

    at_seconds: float
    sent: int
    completed: int
    failed: int
    tokens: float
    ttft_p50_ms: Number
    ttft_p99_ms: Number
    itl_p50_ms: Number
    itl_p99_ms: Number
    generations: dict[str, int]


class Drift(Model):
    """A latency in the first and the last third of a soak; `margin` is the ratio that noise alone can make."""

    statistic: str
    first: float
    last: float
    margin: float
    is_beyond_noise: bool


class StageReport(Model):
    """`noise`: relative standard error by statistic; `lateness`: how late the client sent what was due.

    `drift` is filled in by a soak.
    """

    stage: Stage
    start_seconds: float
    seconds: float
    sent_per_second: Number
    warmup_requests: int
    total: Group
    tasks: dict[str, Group]
    generations: dict[str, Group]
    errors: tuple[ErrorKind, ...]
    lateness: Latency
    noise: dict[str, float]
    drift: tuple[Drift, ...]
    slice_seconds: float
    timeline: tuple[Moment, ...]


class Action(Model):
    """A change of the served generation during the test; `error` null if the server did it."""

    at_seconds: float
    kind: Literal["activate", "rollback"]
    generation: int
    seconds: float
    error: str | None


class Target(Model):
    url: str
    model: str
    api: str


class Report(Model):
    format_version: Literal[1] = 1
    version: str
    created: datetime
    scenario: str
    target: Target
    settings: dict[str, Any]
    interrupted: bool
    capacity_per_second: Number
    warnings: tuple[str, ...]
    stages: tuple[StageReport, ...]
    actions: tuple[Action, ...]

    @property
    def has_goodput(self) -> bool:
        return any(stage.total.good is not None for stage in self.stages)


def read_report(path: Path) -> Report:
    """A `report.json`, or the one in a directory. Raises LoadTestError."""
    file = path / "report.json" if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_REPORT_BYTES:
            raise LoadTestError(f"{file}: over {MAX_REPORT_BYTES} bytes; expected a report of seta loadtest")
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise LoadTestError(f"{file}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise LoadTestError(
            f"{file}: {where}: {first['msg']}; expected a report of seta loadtest, format version {FORMAT_VERSION}"
        ) from error
