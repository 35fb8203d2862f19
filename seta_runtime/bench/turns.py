"""Engines in turns, a tenth of a second each: all are measured under the same weather.

A machine that others use changes its speed within seconds, and a virtual one does so by itself. Engines that are
measured one after another for many seconds each see different machines. So a pass goes through the engines and back,
A B C C B A, a slice of a step or a few each: whatever drifts evenly meets all of them alike. The next pass begins with
the next engine. Ratios are taken within a pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from seta_runtime.bench.points import DECODE_TOKENS, Point
from seta_runtime.bench.slices import Slice

SLICE_SECONDS = 0.1
MAX_STEPS = 16
SLOW = 3.0
"""An engine that takes so many times as long as the fastest one does single steps."""
LONG_PASS_SECONDS = 20.0
"""There and back would take longer than this: only there."""
MIN_PASSES = 5
MOST_OVERTIME = 3
"""So many times its share of the time, a point with a very slow engine may take for the fewest passes."""

Pass = dict[str, list[Slice]]
"""Engine → its slices, in the order in which they were measured."""


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    def begin(self, point: Point, number: int) -> None: ...

    def slice(self, steps: int) -> Slice: ...


class Turns:
    """The engines of a group at one point. All run the same batch, and begin a fresh one at the same time."""

    def __init__(self, engines: Sequence[Engine], point: Point, clock: Callable[[], float] = time.monotonic) -> None:
        self.engines, self.point, self.clock = engines, point, clock
        self.started = clock()
        self.batch = self.num_passes = 0
        self._begin()
        seconds = {engine.name: self._step_seconds(engine) for engine in engines}
        fastest = min(seconds.values())
        steps = max(1, min(MAX_STEPS, round(SLICE_SECONDS / fastest)))
        self.steps = {name: steps if one < SLOW * fastest else 1 for name, one in seconds.items()}
        there = sum(self.steps[name] * one for name, one in seconds.items())
        self.is_mirrored = 2 * there <= LONG_PASS_SECONDS

    def one_pass(self) -> Pass:
        self._make_room()
        found: Pass = {engine.name: [] for engine in self.engines}
        for engine in self._order():
            found[engine.name].append(engine.slice(self.steps[engine.name]))
            self.used[engine.name] += self.steps[engine.name]
        return found

    def _order(self) -> list[Engine]:
        first = self.num_passes % len(self.engines)
        self.num_passes += 1
        there = [*self.engines[first:], *self.engines[:first]]
        return there + there[::-1] if self.is_mirrored else there

    def _make_room(self) -> None:
        """A running batch must have a pass's steps left."""
        needed = max(self.used[name] + 2 * steps for name, steps in self.steps.items())
        if not self.point.is_prefill and needed > DECODE_TOKENS:
            self._begin()

    def _begin(self) -> None:
        for engine in self.engines:
            engine.begin(self.point, self.batch)
        self.used = {engine.name: 0 for engine in self.engines}
        self.batch += 1

    def _step_seconds(self, engine: Engine) -> float:
        """The second of two steps: the first one warms up what the point has not used yet."""
        first = engine.slice(1)
        self.used[engine.name] += 2
        return min(first.seconds, engine.slice(1).seconds) if first.seconds < LONG_PASS_SECONDS / 4 else first.seconds


def passes(turns: Turns, seconds: float, min_passes: int = MIN_PASSES) -> Iterator[Pass]:
    """Passes until so many seconds have gone since the turns began their first batch.

    Longer for `min_passes`, at most MOST_OVERTIME times the seconds; one pass in any case.
    """
    number = 0
    while True:
        yield turns.one_pass()
        number += 1
        used = turns.clock() - turns.started
        if used >= (seconds if number >= min_passes else MOST_OVERTIME * seconds):
            return
