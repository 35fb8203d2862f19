"""Honest splits: groups, near-duplicates, conflicts, draws that are even."""

import random
from collections import Counter

import pytest

from adapters.demo.examples import (
    Row,
    Split,
    draw,
    drop_conflicts,
    drop_near_duplicates,
    is_similar,
    nearest_accuracy,
    shingles,
    split,
)


def made_rows(answers: int, groups: int, per_group: int) -> list[Row]:
    return [
        Row(f"text {answer} {group} {i}", f"answer {answer}", f"group {answer}/{group}")
        for answer in range(answers)
        for group in range(groups)
        for i in range(per_group)
    ]


def test_no_group_is_on_both_sides() -> None:
    sides = split(made_rows(answers=5, groups=12, per_group=9), 0.2)
    train, test = ({row.group for row in side} for side in (sides.train, sides.test))
    assert train and test and not train & test


def test_a_group_shared_by_two_answers_stays_whole() -> None:
    rows = made_rows(3, 10, 8) + [Row(f"shared {i}", f"answer {i % 2}", "shared") for i in range(20)]
    for seed in range(20):
        sides = split(rows, 0.3, seed=seed)
        assert not {row.group for row in sides.train} & {row.group for row in sides.test}


def test_an_answer_that_cannot_be_on_both_sides_is_on_neither() -> None:
    lone = [Row(f"lone {i}", "lone", "only group") for i in range(50)]
    rare = [Row(f"rare {i}", "rare", f"rare {i}") for i in range(10)]
    sides = split(made_rows(2, 10, 8) + lone + rare, 0.2)
    assert {row.answer for row in sides.train + sides.test} == {"answer 0", "answer 1"}


def test_a_huge_group_is_not_held_out_when_a_smaller_one_will_do() -> None:
    rows = [Row(f"big {i}", "a", "big") for i in range(500)] + [Row(f"s {i}", "a", f"s {i // 10}") for i in range(100)]
    for seed in range(20):
        assert "big" not in {row.group for row in split(rows, 0.1, seed=seed).test}


def test_draw_is_even_over_answers_and_over_groups() -> None:
    rows = made_rows(2, 3, 20) + [Row(f"more {i}", "answer 0", "flood") for i in range(400)]
    drawn = draw(rows, 48)
    assert Counter(row.answer for row in drawn) == {"answer 0": 24, "answer 1": 24}
    assert Counter(row.group for row in drawn if row.answer == "answer 0")["flood"] == 6


def test_split_depends_on_the_seed_alone() -> None:
    rows = made_rows(4, 10, 9)
    shuffled = random.Random(7).sample(rows, len(rows))
    assert split(rows, 0.2) == split(shuffled, 0.2)
    assert split(rows, 0.2) != split(rows, 0.2, seed=1)


def test_order_is_shuffled() -> None:
    answers = [row.answer for row in split(made_rows(4, 10, 9), 0.2).train]
    assert answers != sorted(answers)
    assert answers != [answers[i % 4] for i in range(len(answers))]


def test_nearest_accuracy_is_that_of_copying_the_closest_training_text() -> None:
    train = [Row("red round apple", "fruit", "1"), Row("green long bean", "legume", "2")]
    test = [Row("round apple", "fruit", "3"), Row("long green pear", "fruit", "4"), Row("long bean", "legume", "5")]
    assert nearest_accuracy(Split(train, test)) == pytest.approx(2 / 3)


def test_near_duplicates_of_one_answer_are_dropped_and_contrast_pairs_kept() -> None:
    rows = [
        Row("licensed under the GNU GPL version 2", "GPL-2.0", "a"),
        Row("Licensed under the GNU GPL, version 2!", "GPL-2.0", "b"),
        Row("licensed under the GNU GPL version 3", "GPL-3.0", "c"),
        Row("see the file COPYING", "GPL-2.0", "d"),
    ]
    assert [row.group for row in drop_near_duplicates(rows, 0.8)] == ["a", "c", "d"]


@pytest.mark.parametrize(("threshold", "width"), [(0.5, 1), (0.8, 1), (0.6, 2), (1.0, 3)])
def test_near_duplicates_equal_the_comparison_of_all_pairs(threshold: float, width: int) -> None:
    rng = random.Random(3)
    rows = [Row(" ".join(rng.choices("abcdefgh", k=rng.randint(1, 9))), rng.choice("xy"), str(i)) for i in range(300)]
    slow: list[Row] = []
    for row in rows:
        mine = shingles(row.text, width)
        twins = (k for k in slow if k.answer == row.answer and is_similar(mine, shingles(k.text, width), threshold))
        if next(twins, None) is None:
            slow.append(row)
    assert drop_near_duplicates(rows, threshold, width=width) == slow
    assert len(slow) < len(rows)


def test_a_text_with_two_answers_is_dropped() -> None:
    rows = [Row("Stop", "a", "1"), Row("stop", "b", "2"), Row("go", "a", "1"), Row("go", "a", "3")]
    assert drop_conflicts(rows) == [Row("go", "a", "1")]
