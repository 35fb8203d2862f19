"""Which task led at a prompt's end: noted for the requests whose prompt ends in a step, and for no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seta_runtime.leading import MAX_KEPT, LeadingTasks, prompts_that_end
from tests.seta_runtime.test_decisions import generation_of, one_hot

NAMES = generation_of().tasks


def note(leading: LeadingTasks, tasks: list[int], *ended: tuple[str, int], rows: list[int] | None = None) -> None:
    leading.ended = lambda: list(ended)
    leading.note(generation_of(), None if rows is None else torch.tensor(rows), one_hot(*tasks))


def test_the_task_at_the_prompts_last_row() -> None:
    leading = LeadingTasks()
    note(leading, [0, 2, -1, 1], ("a", 1), ("b", 2))
    note(leading, [1], ("c", 0))
    assert leading.take() == [("a", NAMES[2]), ("b", None), ("c", NAMES[1])]
    assert leading.take() == []


def test_rows_of_other_generations_and_of_the_base_model_are_nobodys() -> None:
    leading = LeadingTasks()
    note(leading, [0, 1], ("base", 0), ("other", 4), ("mine", 5), ("later", 9), rows=[2, 5])
    assert leading.take() == [("mine", NAMES[1])]


def test_a_step_in_which_no_prompt_ends_keeps_nothing() -> None:
    leading = LeadingTasks()
    note(leading, [0, 1])
    leading.note(generation_of(), None, one_hot(0))
    assert leading.take() == [] and not leading._kept


def test_the_oldest_give_way() -> None:
    leading = LeadingTasks()
    for step in range(3):
        note(leading, [step] * (MAX_KEPT // 2), *((f"{step}.{row}", row) for row in range(MAX_KEPT // 2)))
    kept = leading.take()
    assert len(kept) == MAX_KEPT and kept[0] == ("1.0", NAMES[1])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12), st.integers(1, 12)), max_size=6))
def test_a_prompts_end_is_found_in_the_one_step_that_computes_it(requests: list[tuple[int, int, int]]) -> None:
    """Of each request: its tokens in this step, those before, those of its prompt."""
    scheduled, computed, prompts = (np.array([one[i] for one in requests], dtype=np.int64) for i in range(3))
    starts = np.concatenate([[0], np.cumsum(scheduled)]).astype(np.int64)
    expected = []
    for index, (now, before, prompt) in enumerate(requests):
        positions = list(range(before, before + now))
        if prompt - 1 in positions:
            expected.append((str(index), int(starts[index]) + positions.index(prompt - 1)))
    ids = [str(index) for index in range(len(requests))]
    assert prompts_that_end(ids, starts, computed, prompts) == expected


@pytest.mark.parametrize("row", [0, 3])
def test_of_a_mixture_the_heaviest_leads(row: int) -> None:
    leading = LeadingTasks()
    leading.ended = lambda: [("a", row)]
    leading.note(generation_of(keep=2), None, torch.tensor([[0.25, 0.0, 0.75]] * 4))
    assert leading.take() == [("a", NAMES[2])]
