"""Ratios of speeds: paired by pass, hardly moved by lost steps, with an interval that means what it says."""

import random

import pytest

from seta_runtime.bench.paired import (
    Interval,
    Ratio,
    clock_seconds,
    cpu_seconds,
    disturbance,
    spread,
    tokens_per_second,
)
from seta_runtime.bench.slices import Slice


def piece(*seconds: float, tokens: int = 8, cpu: float | None = None) -> Slice:
    return Slice(tokens * len(seconds), list(seconds), sum(seconds) if cpu is None else cpu, 0.0, 0)


def test_seconds_of_a_token() -> None:
    slices = [piece(0.1, 0.1, cpu=0.2), piece(0.1, 4.0, cpu=0.3)]
    assert clock_seconds(slices) == pytest.approx(4.3 / 32)
    assert cpu_seconds(slices) == pytest.approx(0.5 / 32)


def test_ratios_are_paired_by_pass() -> None:
    """0.9, 0.95, 0.5: the median is 0.9; the ratio of the medians would be 0.95."""
    plain, routed = (10.0, 20.0, 40.0), (9.0, 19.0, 20.0)
    passes = [{"plain": [piece(8 / p)], "routed": [piece(8 / r)]} for p, r in zip(plain, routed, strict=True)]
    found = Ratio.of(passes, "routed", "plain")
    assert found.clock.median == found.cpu.median == pytest.approx(0.9)
    assert found.quartiles == pytest.approx((0.7, 0.925)) and found.num_passes == 3
    assert found.total == pytest.approx((3 / sum(1 / r for r in routed)) / (3 / sum(1 / p for p in plain)))
    assert tokens_per_second(passes, "plain") == pytest.approx(plain)


def test_engines_with_other_numbers_of_steps_are_compared_by_token() -> None:
    passes = [{"fast": [piece(0.1, 0.1)], "slow": [piece(1.0, tokens=8)]}]
    found = Ratio.of(passes, "fast", "slow")
    assert found.clock.median == found.total == pytest.approx(10.0)
    assert found.quartiles == pytest.approx((10.0, 10.0)) and found.clock.low == found.clock.high


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(60):
        found = Interval.of([draw.gauss(1.0, 0.1) for _ in range(25)])
        assert found.low <= found.median <= found.high
        held += found.low <= 1.0 <= found.high
    assert 51 <= held <= 60
    assert Interval.of([0.9, 1.0, 1.1]) == Interval.of([0.9, 1.0, 1.1]), "the same values, the same interval"


def test_a_machine_whose_speed_jumps_leaves_equal_engines_equal() -> None:
    """Speed of both changes by a factor of up to 3 from pass to pass, and every tenth slice loses its core."""
    draw = random.Random(2)

    def there_and_back(weather: float) -> list[Slice]:
        return [piece(weather * draw.gauss(1, 0.05) + 2.0 * (draw.random() < 0.1)) for _ in range(2)]

    passes = []
    for _ in range(200):
        weather = draw.uniform(0.1, 0.3)
        passes.append({"one": there_and_back(weather), "other": there_and_back(weather)})
    found = Ratio.of(passes, "one", "other")
    assert found.clock.median == pytest.approx(1.0, abs=0.02) and found.clock.low < 1 < found.clock.high
    assert found.clock.high - found.clock.low < 0.04
    assert spread(tokens_per_second(passes, "one")) > 0.5, "on its own it tells nothing"
    assert abs(found.total - 1) > abs(found.clock.median - 1), "lost slices are all in there"


def test_spread_leaves_the_outermost_values_out() -> None:
    assert spread([1.0] * 10 + [100.0] + [1.0] * 10) == 0.0
    assert spread([float(value) for value in range(101)]) == pytest.approx(90 / 50)
    assert spread([3.0]) == 0.0


def test_disturbance_is_shares_of_the_time() -> None:
    slices = [Slice(8, [1.0, 1.0], 1.5, 0.1, 3), Slice(8, [2.0], 2.5, 0.0, 1)]
    assert disturbance([{"plain": slices[:1]}, {"plain": slices[1:]}], "plain") == {
        "slices": 2.0,
        "seconds": 4.0,
        "waited_share": 0.125,
        "stolen_share": 0.025,
        "preemptions_per_second": 1.0,
    }
