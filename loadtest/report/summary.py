"""Recorders as report entries."""

from __future__ import annotations

from collections.abc import Sequence

from ..noise import relative_noise
from ..recorder import Recorder, Tally
from ..stages import Stage
from ..statistics import Histogram
from ..timeline import Slice
from .drift import drift
from .schema import Accuracy, ErrorKind, Group, Latency, Moment, StageReport

LATE_MS = 20.0


def stage_report(stage: Stage, recorder: Recorder, test_start: float) -> StageReport:
    """`test_start` in seconds of `time.perf_counter`."""
    seconds, sending = recorder.seconds, recorder.sending_seconds
    start = recorder.start - test_start
    has_limits = recorder.settings.has_limits
    width = recorder.timeline.width

    def group(tally: Tally) -> Group:
        return _group(tally, seconds, has_limits)

    return StageReport(
        stage=stage,
        start_seconds=round(start, 3),
        seconds=round(seconds, 3),
        sent_per_second=(recorder.total.sent - 1) / sending if sending else None,
        warmup_requests=recorder.warmup_requests,
        total=group(recorder.total),
        tasks={name: group(tally) for name, tally in recorder.tasks.items()},
        generations={name: group(tally) for name, tally in recorder.generations.items()},
        errors=tuple(
            ErrorKind(kind=kind, count=count, example=recorder.examples[kind])
            for kind, count in recorder.errors.most_common()
        ),
        lateness=latency(recorder.lateness),
        noise=relative_noise(recorder.timeline),
        drift=drift(recorder.timeline.slices) if recorder.settings.scenario == "soak" else (),
        slice_seconds=width,
        timeline=tuple(
            _moment(part, round(start + index * width, 3)) for index, part in enumerate(recorder.timeline.slices)
        ),
    )


def latency(histogram: Histogram) -> Latency:
    quantiles = {f"p{percent}_ms": 1000 * histogram.quantile(percent / 100) for percent in (50, 95, 99)}
    largest = 1000 * histogram.largest if histogram.count else None
    return Latency(count=histogram.count, mean_ms=1000 * histogram.mean, max_ms=largest, **quantiles)


def warnings(stages: Sequence[StageReport]) -> list[str]:
    """What makes the numbers say less than they seem to."""
    failed, sent = (sum(getattr(stage.total, name) for stage in stages) for name in ("failed", "sent"))
    found = [f"{failed:,} of {sent:,} requests failed; latencies are those of the others."] if failed else []
    return found + [line for stage in stages for line in _weaknesses(stage)]


def _weaknesses(stage: StageReport) -> list[str]:
    found, name, late = [], stage.stage.name, stage.lateness
    if late.p99_ms is not None and late.p99_ms > LATE_MS:
        found.append(
            f"{name}: the client itself sent 1 % of the requests {late.p99_ms:.0f} ms late or more; that is part of"
            " their latency. Give it more processor time, or a larger --max-in-flight."
        )
    if not stage.noise:
        found.append(f"{name}: too short to estimate the noise; compare such a stage with care.")
    return found


def _group(tally: Tally, seconds: float, has_limits: bool) -> Group:
    def per_second(count: int) -> float | None:
        return count / seconds if seconds else None

    known = Accuracy(asked=tally.asked, right=tally.right, percent=round(tally.accuracy, 3)) if tally.asked else None
    return Group(
        sent=tally.sent,
        completed=tally.completed,
        failed=tally.failed,
        unfinished=tally.unfinished,
        good=tally.good if has_limits else None,
        prompt_tokens=tally.prompt_tokens,
        output_tokens=tally.output_tokens,
        requests_per_second=per_second(tally.completed),
        good_per_second=per_second(tally.good) if has_limits else None,
        tokens_per_second=per_second(tally.output_tokens),
        ttft=latency(tally.ttft),
        itl=latency(tally.itl),
        e2e=latency(tally.e2e),
        accuracy=known,
    )


def _moment(part: Slice, at_seconds: float) -> Moment:
    quantiles = {
        f"{name}_p{percent}_ms": 1000 * histogram.quantile(percent / 100)
        for name, histogram in (("ttft", part.ttft), ("itl", part.itl))
        for percent in (50, 99)
    }
    return Moment(
        at_seconds=at_seconds,
        sent=part.sent,
        completed=part.completed,
        failed=part.failed,
        tokens=round(part.tokens, 1),
        generations=dict(part.generations),
        **quantiles,
    )
