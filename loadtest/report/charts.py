"""Which charts a report gets: over the rate where there were several, and over time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from .plots import Chart, Mark, Point, Series
from .schema import Moment, Report, StageReport

QUANTILES = {"p50": "low", "p95": "middle", "p99": "high"}
PALETTE = ("low", "middle", "high", "fourth", "fifth", "sixth")


def charts(report: Report) -> Iterator[Chart]:
    """The report's charts, the most telling first."""
    if report.scenario == "sweep" and len(report.stages) > 1:
        yield from _over_load(report)
    yield from _over_time(report)


def _over_load(report: Report) -> Iterator[Chart]:
    is_open = report.stages[-1].stage.arrivals != "closed"
    stages = [stage for stage in report.stages if stage.stage.name != "capacity"]
    label = "requests/s due" if is_open else "clients"
    names = {"ttft": "Time to first token", "itl": "Time between tokens", "e2e": "End to end"}
    for key, name in names.items():
        lines = [
            Series(quantile, style, [(_load(one), _latency(one, key, quantile)) for one in stages])
            for quantile, style in QUANTILES.items()
        ]
        yield Chart(f"{name} against load", label, "ms", lines, is_log=True, x_from=0)
    done: list[Point] = [(_load(one), one.total.requests_per_second) for one in stages]
    lines = [Series("completed", "low", done)]
    if is_open:
        lines.insert(0, Series("sent", "muted", [(_load(one), one.sent_per_second) for one in stages]))
    if report.has_goodput:
        lines.append(Series("within the limits", "good", [(_load(one), one.total.good_per_second) for one in stages]))
    yield Chart("Throughput against load", label, "requests/s", lines, x_from=0)


def _over_time(report: Report) -> Iterator[Chart]:
    marks = _marks(report)
    label = "seconds since the start"
    for key, name in (("ttft", "Time to first token, by when the request was due"), ("itl", "Time between tokens")):
        quantiles = {"p50": "low", "p99": "high"}.items()
        lines = [Series(one, style, _points(report, _field(f"{key}_{one}_ms"))) for one, style in quantiles]
        yield Chart(name, label, "ms", lines, marks, is_log=True)
    tokens = Series("output", "low", _points(report, lambda one, width: one.tokens / width))
    yield Chart("Tokens a second", label, "tokens/s", [tokens], marks)
    sent = Series("sent", "muted", _points(report, lambda one, width: one.sent / width))
    failed = Series("failed", "high", _points(report, lambda one, width: one.failed / width))
    yield Chart(
        "Requests a second, by when they were due", label, "requests/s", [sent, *_by_generation(report), failed], marks
    )


def _by_generation(report: Report) -> list[Series]:
    """One line per generation that answered, if the server says which did."""
    names = sorted(
        {name for stage in report.stages for one in stage.timeline for name in one.generations}, key=_natural
    )
    if not names:
        return [Series("completed", "low", _points(report, lambda one, width: one.completed / width))]
    styles = itertools.cycle(PALETTE)
    return [
        Series(f"generation {name}", style, _points(report, _answers(name)))
        for name, style in zip(names, styles, strict=False)
    ]


def _points(report: Report, value: Callable[[Moment, float], float | None]) -> list[Point]:
    """A value over time, with a gap after each stage."""
    found: list[Point] = []
    for stage in report.stages:
        width = stage.slice_seconds
        found += [(one.at_seconds + width / 2, value(one, width)) for one in stage.timeline]
        if stage.timeline:
            found.append((stage.timeline[-1].at_seconds + width, None))
    return found


def _marks(report: Report) -> list[Mark]:
    marks = (
        [Mark(one.start_seconds, one.stage.name, "boundary") for one in report.stages] if len(report.stages) > 1 else []
    )
    for action in report.actions:
        verb = {"activate": "→", "rollback": "←"}[action.kind]
        label = f"{verb} {action.generation}" + (" failed" if action.error else "")
        marks.append(Mark(action.at_seconds, label, "mark failed" if action.error else "mark"))
    return marks


def _field(name: str) -> Callable[[Moment, float], float | None]:
    return lambda one, _: getattr(one, name)


def _answers(generation: str) -> Callable[[Moment, float], float]:
    """Requests a second that this generation answered."""
    return lambda one, width: one.generations.get(generation, 0) / width


def _load(stage: StageReport) -> float:
    return stage.stage.rate if stage.stage.rate is not None else float(stage.stage.concurrency or 0)


def _latency(stage: StageReport, key: str, quantile: str) -> float | None:
    return getattr(getattr(stage.total, key), f"{quantile}_ms")


def _natural(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdigit() else (-1, name)
