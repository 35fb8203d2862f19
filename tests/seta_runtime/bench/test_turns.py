"""Who is measured when: a pass there and back, in turns, on the same batches, for a limited time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from seta_runtime.bench.points import DECODE_TOKENS, PREFILL, Point
from seta_runtime.bench.slices import Slice
from seta_runtime.bench.turns import LONG_PASS_SECONDS, MIN_PASSES, Turns, passes

POINT = Point("decode_8", 8)


class Clock:
    now = 0.0


class Scripted:
    """An engine whose step takes `seconds` of a clock; it notes what it is asked in a list that all share."""

    def __init__(self, name: str, seconds: float, asked: list[tuple[str, int]], clock: Clock) -> None:
        self.name, self.seconds, self.asked, self.clock = name, seconds, asked, clock
        self.steps_of_batch: list[int] = []

    def begin(self, point: Point, number: int) -> None:
        assert number == len(self.steps_of_batch)
        self.steps_of_batch.append(0)

    def slice(self, steps: int) -> Slice:
        self.asked.append((self.name, steps))
        self.steps_of_batch[-1] += steps
        self.clock.now += steps * self.seconds
        return Slice(8 * steps, [self.seconds] * steps, steps * self.seconds, 0.0, 0)


def scripted(**seconds: float) -> tuple[list[Scripted], list[tuple[str, int]], Clock]:
    asked: list[tuple[str, int]] = []
    clock = Clock()
    return [Scripted(name, one, asked, clock) for name, one in seconds.items()], asked, clock


def test_a_pass_goes_there_and_back_and_the_next_begins_with_the_next_engine() -> None:
    engines, asked, _ = scripted(a=0.05, b=0.05, c=0.05)
    run = Turns(engines, POINT)
    del asked[:]
    for _ in range(4):
        run.one_pass()
    assert all(steps == 2 for _, steps in asked), "a tenth of a second"
    assert "".join(name for name, _ in asked) == "abccba" + "bcaacb" + "cabbac" + "abccba"


def test_all_engines_are_always_as_far_in_the_same_batch() -> None:
    engines, _, _ = scripted(a=0.004, b=0.005)
    run = Turns(engines, POINT)
    for _ in range(20):
        run.one_pass()
    one, other = (engine.steps_of_batch for engine in engines)
    assert one == other and len(one) > 3 and max(one) <= DECODE_TOKENS


def test_prefill_never_runs_out_of_room() -> None:
    engines, _, _ = scripted(a=0.001, b=0.001)
    run = Turns(engines, PREFILL)
    for _ in range(100):
        run.one_pass()
    assert [len(engine.steps_of_batch) for engine in engines] == [1, 1]


def test_a_slow_engine_does_single_steps_and_no_more_than_it_must() -> None:
    engines, asked, clock = scripted(fast=0.01, slow=30.0)
    run = Turns(engines, POINT, lambda: clock.now)
    assert [name for name, _ in asked].count("slow") == 1, "two to find that it is slow are one too many"
    del asked[:]
    found = list(passes(run, seconds=40.0))
    assert LONG_PASS_SECONDS < 30.0 and sorted(asked) == [("fast", 10)] * 3 + [("slow", 1)] * 3
    assert len(found) == 3, "what is needed, but for no more than so many times its time, the first step included"


@pytest.mark.parametrize(("seconds", "number"), [(0.5, 3), (0.65, MIN_PASSES - 1), (2.3, MIN_PASSES), (10.3, 25)])
def test_the_time_decides_but_for_the_fewest_passes(seconds: float, number: int) -> None:
    engines, _, clock = scripted(a=0.1, b=0.1)
    run = Turns(engines, PREFILL, lambda: clock.now)
    assert clock.now == pytest.approx(0.4) and run.started == 0.0
    assert len(list(passes(run, seconds))) == number


def test_engines_that_drift_together_stay_equal() -> None:
    """What slows all of them down evenly is seen by none: the reason for going there and back."""
    engines, _, clock = scripted(a=0.1, b=0.1, c=0.1)

    class Drifting(Scripted):
        def slice(self, steps: int) -> Slice:
            found = super().slice(steps)
            return Slice(found.tokens, [0.1 * (1 + clock.now)], 0.0, 0.0, 0)

    drifting = [Drifting(e.name, 0.1, [], clock) for e in engines]
    run = Turns(drifting, PREFILL)
    for _ in range(3):
        sums = [sum(one.seconds for one in of) for of in run.one_pass().values()]
        assert all(one == pytest.approx(other) for one, other in pairwise(sums))
