"""A stage cut into slices of equal length: what plots show over time, and what the noise is estimated from.

The number of slices is bounded: when time runs past the last one, neighbours are merged and slices become twice as
long. Half a second at first, half a minute after an hour.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from .outcome import Outcome
from .statistics import Histogram

FIRST_WIDTH_SECONDS = 0.5
MAX_SLICES = 120


@dataclass
class Slice:
    """Requests by the moment they were due, output by the moment it came."""

    sent: int = 0
    completed: int = 0
    failed: int = 0
    good: int = 0
    tokens: float = 0.0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    generations: Counter[str] = field(default_factory=Counter)

    def merge(self, other: Slice) -> None:
        self.sent += other.sent
        self.completed += other.completed
        self.failed += other.failed
        self.good += other.good
        self.tokens += other.tokens
        self.ttft.merge(other.ttft)
        self.itl.merge(other.itl)
        self.e2e.merge(other.e2e)
        self.generations.update(other.generations)


class Timeline:
    """Slices since the stage's start, each `width` seconds long."""

    def __init__(self) -> None:
        self.width = FIRST_WIDTH_SECONDS
        self.slices: list[Slice] = []

    def at(self, seconds: float) -> Slice:
        """The slice of a moment, `seconds` after the stage's start."""
        while seconds >= self.width * MAX_SLICES:
            self._halve()
        index = int(max(seconds, 0.0) / self.width)
        while len(self.slices) <= index:
            self.slices.append(Slice())
        return self.slices[index]

    def add(self, outcome: Outcome, start: float, generation: str | None, is_good: bool) -> None:
        due = self.at(outcome.due - start)
        due.sent += 1
        if outcome.error is not None or outcome.first is None:
            due.failed += 1
            return
        due.completed += 1
        due.good += is_good
        due.ttft.add((outcome.first - outcome.due,))
        due.e2e.add((outcome.end - outcome.due,))
        if generation is not None:
            due.generations[generation] += 1
        self._add_output(outcome, outcome.first, start)

    def blocks(self, number: int) -> list[Slice]:
        """The slices merged into at most `number` blocks of equal length."""
        step = -(-len(self.slices) // number) if self.slices else 1
        return [merged(self.slices[first : first + step]) for first in range(0, len(self.slices), step)]

    def _add_output(self, outcome: Outcome, first: float, start: float) -> None:
        """Tokens are spread evenly over the answer's pieces: a piece may hold several, and only their sum is known."""
        share = outcome.output_tokens / (1 + len(outcome.gaps))
        self.at(first - start).tokens += share
        moments = itertools.accumulate(outcome.gaps, initial=first - start)
        next(moments)
        by_slice: dict[int, list[float]] = {}
        for moment, gap in zip(moments, outcome.gaps, strict=True):
            by_slice.setdefault(int(moment / self.width), []).append(gap)
        width = self.width
        for index, gaps in by_slice.items():
            part = self.at(index * width)
            part.tokens += share * len(gaps)
            part.itl.add(gaps)

    def _halve(self) -> None:
        self.width *= 2
        self.slices = [merged(self.slices[first : first + 2]) for first in range(0, len(self.slices), 2)]


def merged(slices: list[Slice]) -> Slice:
    whole = Slice()
    for one in slices:
        whole.merge(one)
    return whole
