import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import burst, due_times, poisson, ramp
from loadtest.errors import LoadTestError
from loadtest.stages import Stage


def test_poisson_has_the_rate_and_the_spread_of_independent_users() -> None:
    times = np.array(list(itertools.islice(poisson(20, random.Random(0)), 20_000)))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.03)
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.15)


def test_bursts_come_whole_and_at_the_mean_rate() -> None:
    times = list(itertools.islice(burst(8, 4), 12))
    assert times == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert list(itertools.islice(burst(8, 1), 3)) == [0.0, 0.125, 0.25]


@pytest.mark.parametrize(("first", "last"), [(0.0, 100.0), (50.0, 100.0), (100.0, 20.0), (60.0, 60.0)])
def test_a_ramp_follows_its_line(first: float, last: float) -> None:
    """Counts of many ramps, second by second, against the expected ones; after its end the rate stays."""
    seconds, runs = 10, 60
    counts = np.zeros(seconds + 2)
    for seed in range(runs):
        times = itertools.takewhile(lambda t: t < seconds + 2, ramp(first, last, seconds, random.Random(seed)))
        counts += np.bincount([int(time) for time in times], minlength=seconds + 2)
    lines = [first + (last - first) * (second + 0.5) / seconds for second in range(seconds)] + [last, last]
    assert counts / runs == pytest.approx(np.array(lines), abs=6)


@given(st.sampled_from(["poisson", "burst", "ramp"]), st.floats(0.01, 1e4), st.floats(0, 1e4), st.integers(0, 99))
def test_times_ascend_and_the_seed_decides(arrivals: str, rate: float, ramp_from: float, seed: int) -> None:
    stage = Stage(name="s", arrivals=arrivals, rate=rate, burst_size=3, ramp_from=ramp_from, seconds=5)  # type: ignore[arg-type]
    one, two = (list(itertools.islice(due_times(stage, random.Random(seed)), 50)) for _ in range(2))
    assert one == two == sorted(one)
    assert one[0] >= 0


def test_a_closed_loop_has_no_times() -> None:
    with pytest.raises(LoadTestError, match="closed"):
        due_times(Stage(name="s", arrivals="closed", concurrency=1, seconds=1), random.Random(0))
