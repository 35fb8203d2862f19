"""The arithmetic of slices: speeds, ratios of speeds within a pass, how sure they are, how disturbed it all was."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seta_runtime.bench.slices import Slice
from seta_runtime.bench.turns import Pass

RESAMPLES = 1000
CONFIDENCE = 0.95
Cost = Callable[[Sequence[Slice]], float]


def clock_seconds(slices: Sequence[Slice]) -> float:
    """Of one token."""
    return sum(one.seconds for one in slices) / sum(one.tokens for one in slices)


def cpu_seconds(slices: Sequence[Slice]) -> float:
    """Of one token: what the engine's own threads computed."""
    return sum(one.cpu_seconds for one in slices) / sum(one.tokens for one in slices)


def tokens_per_second(passes: Sequence[Pass], engine: str) -> list[float]:
    """Of each pass."""
    return [1 / clock_seconds(one[engine]) for one in passes]


def spread(values: Sequence[float]) -> float:
    """From the 5th to the 95th percentile, the median being 1."""
    cuts = statistics.quantiles(values, n=20, method="inclusive") if len(values) > 1 else [values[0]]
    return (cuts[-1] - cuts[0]) / statistics.median(values)


@dataclass(frozen=True)
class Interval:
    """Median over passes of their ratios, and where it lies in 95 of 100 resamplings of the passes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> Interval:
        draw = random.Random(seed)
        medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
        outside = int(RESAMPLES * (1 - CONFIDENCE) / 2)
        return cls(statistics.median(values), medians[outside], medians[-1 - outside])


@dataclass(frozen=True)
class Ratio:
    """How fast one engine is, the other being 1.

    clock: the figure. cpu: by the processes' own CPU time, which hardly sees who else used the cores. total: of all
    tokens in all time, so with every disturbance. quartiles: of the passes' ratios by the clock, how noisy they were.
    """

    clock: Interval
    cpu: Interval
    total: float
    quartiles: tuple[float, float]
    num_passes: int

    @classmethod
    def of(cls, passes: Sequence[Pass], one: str, other: str) -> Ratio:
        by_clock = _ratios(passes, one, other, clock_seconds)
        everything = {name: [piece for found in passes for piece in found[name]] for name in (one, other)}
        return cls(
            Interval.of(by_clock),
            Interval.of(_ratios(passes, one, other, cpu_seconds)),
            clock_seconds(everything[other]) / clock_seconds(everything[one]),
            _quartiles(by_clock),
            len(passes),
        )


def disturbance(passes: Sequence[Pass], engine: str) -> dict[str, float]:
    """Of an engine's slices: the share of time in which it had no core, or others had the whole machine's."""
    slices = [one for found in passes for one in found[engine]]
    seconds = sum(one.seconds for one in slices)
    computed = sum(min(one.cpu_seconds, one.seconds) for one in slices)
    return {
        "slices": float(len(slices)),
        "seconds": round(seconds, 2),
        "waited_share": round(1 - computed / seconds, 4),
        "stolen_share": round(sum(one.steal_seconds for one in slices) / seconds, 4),
        "preemptions_per_second": round(sum(one.preemptions for one in slices) / seconds, 2),
    }


def _ratios(passes: Sequence[Pass], one: str, other: str, cost: Cost) -> list[float]:
    return [cost(found[other]) / cost(found[one]) for found in passes]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (values[0], values[0])
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return (first, third)
