"""Two reports side by side: what changed, and which changes are more than noise.

Each stage brings its own relative noise (`loadtest.noise`). A ratio counts as a difference if its logarithm is over
three standard errors, and over the tolerance: what two runs of the same thing differ by anyway, which no run can know
of itself. Shares (errors, accuracy) differ if their difference is over three standard errors of two binomial samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import LoadTestError
from ..noise import SIGMAS
from .markdown import number, table
from .schema import Group, Report, StageReport

NOT_A_CAUSE = {"url", "model", "admin_url", "timeout_seconds"}
Verdict = Literal["better", "worse", "within noise", "noise unknown"]


@dataclass(frozen=True)
class Difference:
    """One statistic of one stage; `margin` is what it may move by without meaning anything.

    The margin is a ratio (1.05) or, for percentages, points; None where the noise is not known.
    """

    stage: str
    statistic: str
    before: float
    after: float
    margin: float | None
    is_more_better: bool = False

    @property
    def is_percentage(self) -> bool:
        return self.statistic.endswith("_percent")

    @property
    def ratio(self) -> float | None:
        return self.after / self.before if self.before else None

    @property
    def verdict(self) -> Verdict:
        if self.margin is None:
            return "noise unknown"
        if self._is_within(self.margin):
            return "within noise"
        return "better" if (self.after > self.before) == self.is_more_better else "worse"

    def _is_within(self, margin: float) -> bool:
        if self.is_percentage:
            return abs(self.after - self.before) <= margin
        low, high = sorted((self.before, self.after))
        return high <= low * margin


@dataclass(frozen=True)
class Comparison:
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        return any(difference.verdict == "worse" for difference in self.differences)


def compare(before: Report, after: Report, tolerance: float) -> Comparison:
    """`tolerance` as a share. Raises LoadTestError where there is nothing to compare."""
    if before.scenario != after.scenario:
        raise LoadTestError(
            f"one report is of the scenario {before.scenario}, the other of {after.scenario}; compare equal ones"
        )
    others = {stage.stage.name: stage for stage in after.stages}
    pairs = [(stage, others[stage.stage.name]) for stage in before.stages if stage.stage.name in others]
    if not pairs:
        raise LoadTestError("the reports have no stage in common; run both with the same --rate or --concurrency")
    found = [difference for pair in pairs for difference in _stage(*pair, tolerance)]
    return Comparison(tuple(found), tuple(_remarks(before, after)))


def as_markdown(comparison: Comparison) -> str:
    """A row per statistic, then the remarks."""
    rows = [_row(difference) for difference in comparison.differences]
    heads = ("stage", "statistic", "A", "B", "B/A", "noise ±", "B is")
    return "\n\n".join([table(heads, rows), *(f"> {remark}" for remark in comparison.remarks)]) + "\n"


def _row(one: Difference) -> tuple[str, ...]:
    if one.margin is None:
        noise = "?"
    else:
        noise = f"{one.margin:.1f} points" if one.is_percentage else f"{100 * (one.margin - 1):.1f} %"
    verdict = f"**{one.verdict}**" if one.verdict in ("better", "worse") else one.verdict
    return one.stage, one.statistic, number(one.before, 2), number(one.after, 2), number(one.ratio, 3), noise, verdict


def _stage(before: StageReport, after: StageReport, tolerance: float) -> Iterator[Difference]:
    stage, one, two = before.stage.name, before.total, after.total
    for name, is_more_better in _STATISTICS.items():
        values = _value(one, name), _value(two, name)
        if values[0] is None or values[1] is None:
            continue
        margin = _margin(before.noise.get(name), after.noise.get(name), tolerance)
        yield Difference(stage, name, values[0], values[1], margin, is_more_better)
    yield _share(stage, "failed_percent", (one.failed, one.sent), (two.failed, two.sent))
    if one.accuracy and two.accuracy:
        hits = (one.accuracy.right, one.accuracy.asked), (two.accuracy.right, two.accuracy.asked)
        yield _share(stage, "accuracy_percent", *hits, is_more_better=True)


_STATISTICS = {f"{name}_p{percent}_ms": False for name in ("ttft", "itl", "e2e") for percent in (50, 95, 99)} | {
    "tokens_per_second": True,
    "requests_per_second": True,
    "good_per_second": True,
}


def _value(group: Group, name: str) -> float | None:
    latency, _, quantile = name.partition("_")
    found = getattr(getattr(group, latency), quantile) if latency in ("ttft", "itl", "e2e") else getattr(group, name)
    return found or None  # a rate of 0 has no ratio; the failures say why


def _margin(before: float | None, after: float | None, tolerance: float) -> float | None:
    if before is None or after is None:
        return None
    return max(math.exp(SIGMAS * math.hypot(before, after)), 1 + tolerance)


def _share(
    stage: str, name: str, before: tuple[int, int], after: tuple[int, int], is_more_better: bool = False
) -> Difference:
    """(hits, trials) of both. Laplace's estimate for the error: no failure in ten is no proof of none ever."""
    variance = 0.0
    for hits, trials in (before, after):
        share = (hits + 1) / (trials + 2)
        variance += share * (1 - share) / max(trials, 1)
    percents = [100 * hits / max(trials, 1) for hits, trials in (before, after)]
    return Difference(stage, name, percents[0], percents[1], 100 * SIGMAS * math.sqrt(variance), is_more_better)


def _remarks(before: Report, after: Report) -> Iterator[str]:
    """What else differs between the two: a difference then has more than one possible cause."""
    for key in sorted((before.settings.keys() | after.settings.keys()) - NOT_A_CAUSE):
        one, two = before.settings.get(key), after.settings.get(key)
        if one != two:
            yield f"the settings differ: {key} was {one}, then {two}"
    for name, report in (("A", before), ("B", after)):
        if report.interrupted:
            yield f"{name} was interrupted"
        yield from (f"{name}: {line}" for line in report.warnings)
