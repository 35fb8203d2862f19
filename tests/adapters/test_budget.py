"""The budget: per-layer quotas, selection, and selection past N_base."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.blocks import Block, blocks_at, by_site, ranked
from adapters.budget import coverage, layer_quotas, select, select_past_quotas, stable_length

LAYERS = st.dictionaries(st.integers(0, 40), st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(layers=LAYERS, density=st.floats(0.001, 1))
def test_quotas_spend_the_budget_within_bounds(layers: dict[int, tuple[int, float]], density: float) -> None:
    num_blocks = {layer: count for layer, (count, _) in layers.items()}
    quotas = layer_quotas(num_blocks, {layer: share for layer, (_, share) in layers.items()}, density)
    budget = int(density * sum(num_blocks.values()))
    assert quotas.keys() == num_blocks.keys()
    assert all(1 <= quota <= num_blocks[layer] for layer, quota in quotas.items())
    num_least = sum(quota == 1 for quota in quotas.values())
    assert budget <= sum(quotas.values()) <= max(budget + num_least, len(quotas))


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(20, 200), shares=st.lists(st.floats(0, 1), min_size=2, max_size=8), density=st.floats(0.1, 0.5)
)
def test_quotas_are_in_inverse_proportion_to_coverage(count: int, shares: list[float], density: float) -> None:
    """`quota · (1 + coverage)` is the same for layers of one size, to the block that rounding moves."""
    quotas = layer_quotas(dict.fromkeys(range(len(shares)), count), dict(enumerate(shares)), density)
    budget = int(density * count * len(shares))
    assert sum(quotas.values()) == budget
    scale = budget / sum(1 / (1 + share) for share in shares)
    for layer, share in enumerate(shares):
        assert abs(quotas[layer] - scale / (1 + share)) < 1


def test_quotas_of_a_hand_case() -> None:
    assert layer_quotas({0: 10, 1: 10}, {}, 0.5) == {0: 5, 1: 5}
    assert layer_quotas({0: 12, 1: 12}, {1: 1.0}, 0.5) == {0: 8, 1: 4}
    assert layer_quotas({0: 12, 1: 12}, {1: 1.0}, 11 / 24) == {0: 7, 1: 4}, "7.33 and 3.67"
    assert layer_quotas({0: 10, 1: 10, 2: 10}, {}, 11 / 30) == {0: 4, 1: 4, 2: 3}


def test_what_a_full_layer_cannot_take_goes_to_the_others() -> None:
    assert layer_quotas({0: 8, 1: 8}, {1: 1.0}, 0.875) == {0: 8, 1: 6}
    assert layer_quotas({0: 8, 1: 8}, {1: 1.0}, 1.0) == {0: 8, 1: 8}


def test_coverage_is_each_layers_held_share() -> None:
    held = [(1, "v_proj", 0, 0), (1, "o_proj", 0, 0), (3, "v_proj", 1, 1)]
    assert coverage({1: 4, 2: 4, 3: 10}, held) == {1: 0.5, 2: 0.0, 3: 0.1}


def test_select_takes_the_best_blocks_of_each_layer() -> None:
    scores = {
        (1, "v_proj"): torch.tensor([[0.1, 0.9], [0.8, -1.0]]),
        (1, "o_proj"): torch.tensor([[0.7, 2.0], [0.0, -2.0]]),
        (2, "v_proj"): torch.tensor([[5.0, 4.0], [6.0, 3.0]]),
        (2, "o_proj"): torch.tensor([[1.0, 1.0], [1.0, 1.0]]),
    }
    assert select(scores, {1: 3, 2: 2}) == [
        (2, "v_proj", 1, 0),
        (2, "v_proj", 0, 0),
        (1, "o_proj", 0, 1),
        (1, "v_proj", 0, 1),
        (1, "v_proj", 1, 0),
    ]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), quota=st.integers(1, 15))
def test_no_block_left_out_scores_better_than_one_taken(seed: int, quota: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {(3, target): torch.randn(2, 4, generator=generator) for target in ("k_proj", "v_proj")}
    taken = set(select(scores, {3: quota}))
    values = {
        (3, target, row, column): float(scores[3, target][row, column])
        for target in ("k_proj", "v_proj")
        for row in range(2)
        for column in range(4)
    }
    assert len(taken) == quota
    assert min(values[block] for block in taken) >= max(value for block, value in values.items() if block not in taken)


def test_selection_goes_on_while_the_rate_of_new_blocks_moves() -> None:
    """Base 16, so windows of 2. A hand case: the windows up to 16 hold 2 and 1 new blocks, then 2, 0, 1, 1: stop."""
    is_new = [False] * 12 + [True, True] + [True, False] + [True, True] + [False, False] + [True, False] * 4
    assert stable_length(is_new, 16) == 24
    assert is_new[20:24] == [True, False, True, False]


@pytest.mark.parametrize("is_new", [[True] * 40, [False] * 40, [True, False] * 20])
def test_a_steady_rate_takes_no_more_than_the_base(is_new: list[bool]) -> None:
    """As for a first task, where every block is new."""
    assert stable_length(is_new, 16) == 16


def test_selection_ends_with_the_last_block() -> None:
    assert stable_length([True, True, False, False] * 5, 16) == 20


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), num_held=st.integers(0, 32), quota=st.integers(1, 16))
def test_past_the_quotas_come_the_best_of_what_is_left(seed: int, num_held: int, quota: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {(layer, "v_proj"): torch.randn(4, 4, generator=generator) for layer in (1, 2)}
    everything = ranked(scores)
    held: list[Block] = [everything[i] for i in torch.randperm(32, generator=generator)[:num_held]]
    quotas = {1: quota, 2: quota}
    chosen, base = select_past_quotas(scores, quotas, held), select(scores, quotas)
    assert chosen[: len(base)] == base
    left = [block for block in everything if block not in base]
    assert chosen[len(base) :] == left[: len(chosen) - len(base)]
    assert blocks_at(by_site(chosen)) == frozenset(chosen)
