"""OP, BWT and FT on matrices worked out by hand (eq. 15-17)."""

import pytest

from adapters.evaluate import backward_transfer, forgetting, overall_performance

MATRIX = (
    (80.0,),
    (90.0, 60.0),
    (70.0, 62.0, 50.0),
    (75.0, 50.0, 55.0, 40.0),
)


def test_overall_performance_is_the_mean_of_the_last_row() -> None:
    assert overall_performance(MATRIX) == pytest.approx((75 + 50 + 55 + 40) / 4)


def test_backward_transfer_compares_with_the_diagonal() -> None:
    """(75 - 80) + (50 - 60) + (55 - 50) = -10, over the 3 earlier tasks."""
    assert backward_transfer(MATRIX) == pytest.approx(-10 / 3)


def test_forgetting_compares_with_the_best_ever() -> None:
    """(90 - 75) + (62 - 50) + (55 - 55) = 27, over the 3 earlier tasks: the best may be after, or in the last row."""
    assert forgetting(MATRIX) == pytest.approx(27 / 3)


def test_a_single_task_has_nothing_to_forget() -> None:
    assert overall_performance([[64.0]]) == 64.0
    assert backward_transfer([[64.0]]) == 0.0
    assert forgetting([[64.0]]) == 0.0


def test_improvement_is_positive_transfer_and_no_forgetting() -> None:
    matrix = [[50.0], [60.0, 70.0]]
    assert backward_transfer(matrix) == 10.0
    assert forgetting(matrix) == 0.0
