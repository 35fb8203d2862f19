"""Histograms against the sorted values themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.statistics import MAX_ERROR, Histogram, bucket, middle

durations = st.lists(st.floats(1e-6, 3600), min_size=1, max_size=300)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@given(durations, st.floats(0, 1))
def test_a_quantile_is_numpys_within_the_bucket_width(values: list[float], share: float) -> None:
    assert histogram_of(values).quantile(share) == pytest.approx(np.quantile(values, share), rel=1.01 * MAX_ERROR)


@given(st.floats(1e-6, 1e5))
def test_a_bucket_stands_for_what_is_in_it(seconds: float) -> None:
    assert middle(bucket(seconds)) == pytest.approx(seconds, rel=1.01 * MAX_ERROR)


@given(durations, durations)
def test_merging_is_adding(one: list[float], two: list[float]) -> None:
    merged = histogram_of(one)
    merged.merge(histogram_of(two))
    whole = histogram_of(one + two)
    assert merged.counts == whole.counts
    assert (merged.count, merged.smallest, merged.largest) == (whole.count, whole.smallest, whole.largest)
    assert merged.mean == pytest.approx(whole.mean)


def test_what_is_shorter_than_the_first_bucket_is_kept() -> None:
    histogram = histogram_of([0.0, -1.0, 1e-9, 1.0])  # a clock may be read twice in one tick
    assert histogram.count == 4
    assert histogram.quantile(1.0) == 1.0
    assert histogram.quantile(0.0) == pytest.approx(0.0, abs=1e-6)


def test_nothing_recorded_is_not_a_number() -> None:
    assert math.isnan(Histogram().quantile(0.5))
    assert math.isnan(Histogram().mean)


def test_memory_is_bounded_by_the_range_not_the_number() -> None:
    histogram = Histogram()
    for index in range(60_000):
        histogram.add((1e-4 * 1.001 ** (index % 10_000),))
    assert histogram.count == 60_000
    assert len(histogram.counts) < 2_100  # 1e-4 s to 2.2 s, in steps of 0.5 %
