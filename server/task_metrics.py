"""Requests and latency by the task that led where the answer begins.

The gate decides in the engine's worker, which is asked now and then (`RoutingCounts`). Until it has told a request's
task, the request's times are kept beside it, also past its end; then they join those of its generation and task.
"""

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable
from typing import Literal

from .histogram import Latencies

Outcome = Literal["ok", "client_error", "refused", "error", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "client_error", "refused", "error", "cancelled")
BASE, UNKNOWN = "base", "none"
"""Instead of a task: the base model began the answer; the gate was not asked, or nobody asked the worker in time."""
MAX_ENDED = 1 << 13
"""Ended requests that are kept for their task; 1.3 KiB each. Past that the oldest counts as unknown."""


class Tracked:
    """One of the engine's requests. Its times go into `latencies`: its own, and its task's once that is known."""

    def __init__(self, request_id: str, generation: str) -> None:
        self.request_id = request_id
        self.generation = generation
        self.latencies = Latencies()
        self.task: str | None = None
        self.outcome: Outcome | None = None
        self.ended_at = 0.0


class TaskMetrics:
    """Counted in the event loop, by generation and task, both as labels."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str, Outcome]] = Counter()
        self.latencies: dict[tuple[str, str], Latencies] = {}
        self._waiting: dict[str, list[Tracked]] = {}
        self._ended: deque[Tracked] = deque()

    def track(self, request_id: str, generation: str) -> Tracked:
        """A request that goes to the engine; `ended` must follow."""
        tracked = Tracked(request_id, generation)
        if generation == BASE:
            self._settle(tracked, BASE)
        else:
            self._waiting.setdefault(request_id, []).append(tracked)
        return tracked

    def ended(self, request: list[Tracked], outcome: Outcome, seconds: float) -> None:
        """An answer to a client has ended; of several prompts or choices in one, the first stands for the answer."""
        for tracked in request:
            tracked.ended_at = time.monotonic()
            if tracked is request[0]:
                self._count(tracked, outcome, seconds)
            if tracked.task is None:
                self._ended.append(tracked)
        while len(self._ended) > MAX_ENDED:
            self._give_up(self._ended.popleft())

    def tell(self, led: Iterable[tuple[str, str | None]], asked_at: float) -> None:
        """What the workers answered: requests and their tasks, None for base.

        What had ended when they were asked, and is not among these, is in no later answer either.
        """
        for request_id, task in led:
            for tracked in self._waiting_for(request_id):
                self._settle(tracked, task or BASE)
        while self._ended and self._ended[0].ended_at < asked_at:
            self._give_up(self._ended.popleft())

    def keep_only(self, generations: Collection[str]) -> None:
        """Forget those that have left memory."""
        self.latencies = {key: value for key, value in self.latencies.items() if key[0] in generations}
        self.outcomes = Counter({key: value for key, value in self.outcomes.items() if key[0] in generations})

    def _waiting_for(self, request_id: str) -> list[Tracked]:
        """vLLM puts a number and "_" before the id where a prompt gets several answers."""
        return self._waiting.pop(request_id, None) or self._waiting.pop(request_id.partition("_")[2], [])

    def _count(self, tracked: Tracked, outcome: Outcome, seconds: float) -> None:
        if outcome == "ok":
            tracked.latencies.duration.observe(seconds)
        tracked.outcome = outcome
        if tracked.task is not None:
            self.outcomes[tracked.generation, tracked.task, outcome] += 1

    def _settle(self, tracked: Tracked, task: str) -> None:
        shared = self.latencies.setdefault((tracked.generation, task), Latencies())
        shared.add(tracked.latencies)
        tracked.latencies, tracked.task = shared, task
        if tracked.outcome is not None:
            self.outcomes[tracked.generation, task, tracked.outcome] += 1

    def _give_up(self, tracked: Tracked) -> None:
        if tracked.task is None:
            self._settle(tracked, UNKNOWN)
            others = [one for one in self._waiting.pop(tracked.request_id, ()) if one is not tracked]
            if others:
                self._waiting[tracked.request_id] = others
