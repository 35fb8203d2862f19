"""What a stage's outcomes add up to, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from .outcome import Outcome
from .settings import Settings
from .statistics import Histogram
from .timeline import Timeline

MAX_LABELS = 64
MAX_LABEL_CHARS = 64
OTHER = "(other)"


@dataclass
class Tally:
    """Counts and latencies of some of the requests: all, one task's, one generation's."""

    sent: int = 0
    completed: int = 0
    failed: int = 0
    unfinished: int = 0
    good: int = 0
    asked: int = 0
    right: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)

    @property
    def accuracy(self) -> float:
        """Percent of the answers that are right, among those for which that is known; NaN if none is."""
        return 100 * self.right / self.asked if self.asked else math.nan

    def add(self, outcome: Outcome, gaps: Histogram, is_good: bool) -> None:
        """`gaps`: the outcome's, counted once for all tallies that it belongs to."""
        self.sent += 1
        if outcome.error is not None:
            self.failed += 1
            return
        self.completed += 1
        self.good += is_good
        self.asked += outcome.is_right is not None
        self.right += bool(outcome.is_right)
        self.prompt_tokens += outcome.prompt_tokens
        self.output_tokens += outcome.output_tokens
        assert outcome.first is not None, "a completed request has output"
        self.ttft.add((outcome.first - outcome.due,))
        self.itl.merge(gaps)
        self.e2e.add((outcome.end - outcome.due,))


class Recorder:
    """The outcomes of one stage that began at `start` (seconds of `time.perf_counter`)."""

    def __init__(self, settings: Settings, start: float, warmup_seconds: float = 0.0) -> None:
        self.settings = settings
        self.start = start
        self.counts_from = start + warmup_seconds
        self.warmup_requests = 0
        self.in_flight = 0
        self.total = Tally()
        self.tasks: dict[str, Tally] = {}
        self.generations: dict[str, Tally] = {}
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.lateness = Histogram()
        self.timeline = Timeline()
        self.first_due = math.inf
        self.last_due = start
        self.last_end = start

    @property
    def seconds(self) -> float:
        """From the first counted request's due time to the last one's end."""
        return max(self.last_end - self.first_due, 0.0) if self.total.sent else 0.0

    @property
    def sending_seconds(self) -> float:
        return max(self.last_due - self.first_due, 0.0) if self.total.sent else 0.0

    def add(self, outcome: Outcome) -> None:
        if outcome.due < self.counts_from:
            self.warmup_requests += 1
            return
        generation = None if outcome.generation is None else _label(outcome.generation, self.generations)
        tallies = [self.total, _tally(self.tasks, outcome.task)]
        if generation is not None:
            tallies.append(_tally(self.generations, generation))
        is_good = self.is_good(outcome)
        gaps = Histogram(outcome.gaps)
        for tally in tallies:
            tally.add(outcome, gaps, is_good)
        self._clock(outcome.due, outcome.end)
        self.lateness.add((outcome.sent - outcome.due,))
        self.timeline.add(outcome, self.start, generation, is_good)
        if outcome.error is not None:
            kind = _label(outcome.error, self.examples)
            self.errors[kind] += 1
            self.examples.setdefault(kind, outcome.detail)

    def add_unfinished(self, task: str, due: float, now: float) -> None:
        """A request that was in flight when the test was interrupted."""
        if due < self.counts_from:
            return
        for tally in (self.total, _tally(self.tasks, task)):
            tally.sent += 1
            tally.unfinished += 1
        self._clock(due, now)

    def is_good(self, outcome: Outcome) -> bool:
        """Completed within the limits; the time between tokens is judged by its mean over the answer."""
        if outcome.error is not None or outcome.first is None:
            return False
        mean_gap = sum(outcome.gaps) / len(outcome.gaps) if outcome.gaps else 0.0
        limits = self.settings
        taken = (
            (outcome.first - outcome.due, limits.ttft_limit_ms),
            (mean_gap, limits.itl_limit_ms),
            (outcome.end - outcome.due, limits.e2e_limit_ms),
        )
        return all(limit is None or 1000 * seconds <= limit for seconds, limit in taken)

    def _clock(self, due: float, end: float) -> None:
        self.first_due = min(self.first_due, due)
        self.last_due = max(self.last_due, due)
        self.last_end = max(self.last_end, end)


def _tally(tallies: dict[str, Tally], name: str) -> Tally:
    return tallies.setdefault(_label(name, tallies), Tally())


def _label(name: str, known: Collection[str]) -> str:
    """The name itself, shortened; `(other)` once too many are known: a server must not fill the client's memory."""
    name = name[:MAX_LABEL_CHARS]
    return name if name in known or len(known) < MAX_LABELS else OTHER
