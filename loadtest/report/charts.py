"""Which charts a report gets: over the rate where there were several, and over time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from .plots import Chart, Mark, Point, Series
from .schema import Moment, Report, StageReport

QUANTILES = {"p50": "low", "p95": "middle", "p99": "high"}
Value = Callable[[Moment, float], float | None]
"""Of a slice and its width in seconds."""
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
        yield Chart(name, label, "ms", lines, marks, is_log=True, x_from=0)
    tokens = Series("output", "low", _points(report, lambda one, width: one.tokens / width))
    yield Chart("Output", label, "tokens/s", [tokens], marks, x_from=0)
    sent = Series("sent", "muted", _while_sending(report, lambda one, width: one.sent / width))
    failed = Series("failed", "high", _while_sending(report, lambda one, width: one.failed / width))
    lines = [sent, *_by_generation(report), failed]
    yield Chart("Requests, by when they were due", label, "requests/s", lines, marks, x_from=0)


def _by_generation(report: Report) -> list[Series]:
    """One line per generation that answered, if the server says which did."""
    names = sorted(
        {name for stage in report.stages for one in stage.timeline for name in one.generations}, key=_natural
    )
    if not names:
        return [Series("completed", "low", _while_sending(report, lambda one, width: one.completed / width))]
    styles = itertools.cycle(PALETTE)
    return [
        Series(f"generation {name}", style, _while_sending(report, _answers(name)))
        for name, style in zip(names, styles, strict=False)
    ]


def _while_sending(report: Report, value: Value) -> list[Point]:
    """A value over time, without the slices in which the last answers were only waited for."""
    return _points(report, value, lambda timeline: timeline[: 1 + max(_indices_sent(timeline), default=-1)])


def _indices_sent(timeline: Sequence[Moment]) -> list[int]:
    return [index for index, one in enumerate(timeline) if one.sent]


def _points(report: Report, value: Value, cut: Callable[[Sequence[Moment]], Sequence[Moment]] = tuple) -> list[Point]:
    """A value over time, with a gap after each stage."""
    found: list[Point] = []
    for stage in report.stages:
        width, shown = stage.slice_seconds, cut(stage.timeline)
        found += [(one.at_seconds + width / 2, value(one, width)) for one in shown]
        if shown:
            found.append((shown[-1].at_seconds + width, None))
    return found


def _marks(report: Report) -> list[Mark]:
    marks = (
        [Mark(one.start_seconds, one.stage.name, "boundary") for one in report.stages] if len(report.stages) > 1 else []
    )
    for index, action in enumerate(report.actions):
        verb = {"activate": "→", "rollback": "←"}[action.kind]
        label = f"{verb} {action.generation}" + (" failed" if action.error else "")
        marks.append(Mark(action.at_seconds, label, "mark failed" if action.error else "mark", row=1 + index % 2))
    return marks


def _field(name: str) -> Value:
    return lambda one, _: getattr(one, name)


def _answers(generation: str) -> Value:
    """Requests a second that this generation answered."""
    return lambda one, width: one.generations.get(generation, 0) / width


def _load(stage: StageReport) -> float:
    return stage.stage.rate if stage.stage.rate is not None else float(stage.stage.concurrency or 0)


def _latency(stage: StageReport, key: str, quantile: str) -> float | None:
    return getattr(getattr(stage.total, key), f"{quantile}_ms")


def _natural(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdigit() else (-1, name)
