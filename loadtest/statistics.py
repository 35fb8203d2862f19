"""Distributions of durations in bounded memory.

A histogram of geometric buckets, 0.5 % wide, from 1 µs up: whatever is recorded, a quantile is off by at most 0.25 %,
and the memory is bounded by the ratio of the longest to the shortest duration (4,400 buckets from 1 µs to an hour),
not by their number. Histograms add up exactly, so tasks, generations and time slices can be merged at will.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

SMALLEST_SECONDS = 1e-6
WIDTH = 1.005
MAX_ERROR = (WIDTH - 1) / 2
_PER_LOG = 1 / math.log(WIDTH)


def bucket(seconds: float) -> int:
    """The bucket of a duration: 0 holds everything up to 1 µs, i > 0 the range (1 µs)·1.005^(i-1 … i)."""
    return math.ceil(math.log(seconds / SMALLEST_SECONDS) * _PER_LOG) if seconds > SMALLEST_SECONDS else 0


def middle(index: int) -> float:
    """The duration that stands for a bucket, in seconds."""
    return SMALLEST_SECONDS * WIDTH ** (index - 0.5) if index else SMALLEST_SECONDS


class Histogram:
    """Counts of durations in seconds."""

    def __init__(self, seconds: Sequence[float] = ()) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.smallest = math.inf
        self.largest = 0.0
        self.add(seconds)

    def add(self, seconds: Sequence[float]) -> None:
        if not seconds:
            return
        counts = self.counts
        for value in seconds:
            counts[bucket(value)] += 1
        self.count += len(seconds)
        self.total += sum(seconds)
        self.smallest = min(self.smallest, min(seconds))
        self.largest = max(self.largest, max(seconds))

    def merge(self, other: Histogram) -> None:
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] += count
        self.count += other.count
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)

    @property
    def mean(self) -> float:
        """NaN if empty."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The value with `share` (0 to 1) of the others below it, between two of them linearly; NaN if empty."""
        if not self.count:
            return math.nan
        place = share * (self.count - 1)
        below, above = self._at(math.floor(place)), self._at(math.ceil(place))
        return below + (above - below) * (place - math.floor(place))

    def _at(self, rank: int) -> float:
        """The rank-th smallest value (from 0), as its bucket's middle, within the smallest and the largest seen."""
        left = rank
        for index in sorted(self.counts):
            left -= self.counts[index]
            if left < 0:
                return min(max(middle(index), self.smallest), self.largest)
        raise IndexError(rank)
