"""A histogram as Prometheus wants it, counted in the event loop without a lock."""

from bisect import bisect_left
from collections.abc import Sequence

LATENCY_BUCKETS = (
    *(0.001, 0.0016, 0.0025, 0.004, 0.0063),
    *(0.01, 0.016, 0.025, 0.04, 0.063),
    *(0.1, 0.16, 0.25, 0.4, 0.63),
    *(1.0, 1.6, 2.5, 4.0, 6.3),
    *(10.0, 25.0, 60.0),
)
"""Seconds: five a decade from 1 ms to 10 s, so that a quantile is off by at most a factor of 1.6; two more beyond."""


class Histogram:
    """`counts[i]` values are above the bucket before and at most `buckets[i]`; the last count is of those above all."""

    def __init__(self, buckets: Sequence[float] = LATENCY_BUCKETS) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.buckets, value)] += times
        self.sum += value * times

    def add(self, other: "Histogram") -> None:
        """All that another one of the same buckets has counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    @property
    def total(self) -> int:
        return sum(self.counts)


class Latencies:
    """Seconds, of the requests of one generation, or of one generation and task."""

    def __init__(self) -> None:
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.duration = Histogram()

    def add(self, other: "Latencies") -> None:
        self.first_token.add(other.first_token)
        self.between_tokens.add(other.between_tokens)
        self.duration.add(other.duration)


def cumulative(buckets: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """`(le, count)` pairs as `HistogramMetricFamily.add_metric` takes them; the last is +Inf."""
    running, pairs = 0, []
    for bound, count in zip([*map(repr, buckets), "+Inf"], counts, strict=True):
        running += count
        pairs.append((bound, float(running)))
    return pairs
