"""When requests are sent in an open loop: seconds since the stage's start, ascending, without end.

Arrivals do not depend on the answers. A server that stalls therefore gets the requests that real users would have
sent meanwhile, and their latency counts from the moment they were due: no coordinated omission.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from .errors import LoadTestError
from .stages import Stage


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Independent users: exponential gaps of mean 1/rate."""
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


def burst(rate: float, size: int) -> Iterator[float]:
    """`size` requests at the same moment, every size/rate seconds; size 1 is an even spacing."""
    return (group * size / rate for group in itertools.count() for _ in range(size))


def ramp(first: float, last: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Poisson arrivals whose rate goes straight from `first` to `last` in `seconds` and then stays.

    A unit-rate arrival at x is moved to the t at which the expected number of arrivals, first·t + slope·t²/2, is x.
    """
    slope = (last - first) / seconds
    reached = (first + last) / 2 * seconds
    for x in itertools.accumulate(rng.expovariate(1) for _ in itertools.count()):
        if x >= reached:
            yield seconds + (x - reached) / last
        elif slope == 0:
            yield x / first
        else:
            yield (math.sqrt(first**2 + 2 * slope * x) - first) / slope


def due_times(stage: Stage, rng: random.Random) -> Iterator[float]:
    """The arrival times of an open-loop stage."""
    if stage.rate is None or stage.arrivals == "closed":
        raise LoadTestError(f"stage {stage.name}: {stage.arrivals} arrivals have no times of their own")
    if stage.arrivals == "poisson":
        return poisson(stage.rate, rng)
    if stage.arrivals == "burst":
        return burst(stage.rate, stage.burst_size)
    return ramp(stage.ramp_from, stage.rate, stage.seconds, rng)
