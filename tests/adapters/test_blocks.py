"""Warm-up, block scores, quotas and selection (eq. 2, 3)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.blocks import WarmUp, block_means, layer_quotas, select, standardise


def steps_until_stop(rule: WarmUp, norms: list[float]) -> int | None:
    return next((step for step, norm in enumerate(norms, 1) if rule.should_stop(norm)), None)


def test_rho_is_the_norms_share_of_all_norms_so_far() -> None:
    rule = WarmUp()
    for norm in (4.0, 4.0, 2.0):
        rule.should_stop(norm)
    assert rule.rhos == pytest.approx([1.0, 0.5, 0.2])


def test_warm_up_does_not_stop_before_its_window_is_full() -> None:
    """rho of equal norms is 1, 1/2, 1/3, 1/4: far below its coefficient of variation, 0.56, from the fourth step on."""
    assert steps_until_stop(WarmUp(window=4), [1.0] * 10) == 4


def test_warm_up_stops_when_rho_is_below_its_coefficient_of_variation() -> None:
    """Worked by hand for a window of 2, where the coefficient of (a, b) is |a - b| / (a + b).

    Norms 1, 2, 6, 4 have rho 1, 2/3, 2/3, 4/13. At step 2 it is 1/5 < 2/3; at step 3 it is 0; at step 4 it is
    (26 - 12) / (26 + 12) = 0.368 > 0.308, the first to stop. With 5 for 4, rho is 0.357 > 0.302: no stop; another 4
    then has rho 0.222 < 0.233.
    """
    assert steps_until_stop(WarmUp(window=2), [1.0, 2.0, 6.0, 4.0, 4.0]) == 4
    assert steps_until_stop(WarmUp(window=2), [1.0, 2.0, 6.0, 5.0, 4.0]) == 5


def test_only_the_window_counts() -> None:
    """After a wild start, rho falls slowly: over three steps it hardly varies, over all of them it varies by half."""
    rhos = [1.0, 0.01, 0.9, 0.9, 0.9, 0.55, 0.45, 0.4, 0.35, 0.3]
    norms = [1.0]
    for rho in rhos[1:]:
        norms.append(sum(norms) * rho / (1 - rho))
    rule = WarmUp(window=3)
    assert steps_until_stop(rule, norms) is None
    assert rule.rhos == pytest.approx(rhos)


def test_warm_up_ends_at_its_maximum() -> None:
    assert steps_until_stop(WarmUp(window=3, max_steps=12), [2.0**step for step in range(50)]) == 12


def test_warm_up_survives_gradients_of_zero() -> None:
    assert steps_until_stop(WarmUp(window=3, max_steps=5), [0.0] * 10) == 5


def test_block_means_of_a_hand_case() -> None:
    gradient = torch.tensor(
        [
            [1.0, -1.0, 0.0, 0.0],
            [3.0, -3.0, 0.0, 8.0],
            [0.5, 0.5, -1.0, 2.0],
            [0.5, 0.5, -3.0, 4.0],
        ]
    )
    assert torch.equal(block_means(gradient, 2), torch.tensor([[2.0, 2.0], [0.5, 2.5]]))


def test_block_means_of_a_wide_matrix() -> None:
    gradient = torch.arange(2 * 6, dtype=torch.float32).reshape(2, 6)
    assert torch.equal(block_means(gradient, 2), torch.tensor([[3.5, 5.5, 7.5]]))


def test_scores_have_mean_zero_and_variance_one_over_all_targets_of_a_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    means = {
        (2, "v_proj"): torch.rand(2, 4, generator=generator),
        (2, "o_proj"): 10 * torch.rand(4, 2, generator=generator),
        (3, "v_proj"): 100 + torch.rand(2, 4, generator=generator),
    }
    scores = standardise(means)
    for layer in (2, 3):
        values = torch.cat([grid.flatten() for (at, _), grid in scores.items() if at == layer])
        assert float(values.mean()) == pytest.approx(0, abs=1e-5)
        assert float(values.var(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert float(scores[2, "o_proj"].mean()) > float(scores[2, "v_proj"].mean()), "targets share one scale"


def test_scores_of_equal_blocks_are_zero() -> None:
    assert torch.equal(standardise({(1, "v_proj"): torch.full((2, 2), 3.0)})[1, "v_proj"], torch.zeros(2, 2))


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


def test_select_takes_the_best_blocks_of_each_layer_sorted() -> None:
    scores = {
        (1, "v_proj"): torch.tensor([[0.1, 0.9], [0.8, -1.0]]),
        (1, "o_proj"): torch.tensor([[0.7, 2.0], [0.0, -2.0]]),
        (2, "v_proj"): torch.tensor([[5.0, 4.0], [6.0, 3.0]]),
        (2, "o_proj"): torch.tensor([[1.0, 1.0], [1.0, 1.0]]),
    }
    chosen = select(scores, {1: 3, 2: 2})
    assert {site: blocks.tolist() for site, blocks in chosen.items()} == {
        (1, "o_proj"): [[0, 1]],
        (1, "v_proj"): [[0, 1], [1, 0]],
        (2, "v_proj"): [[0, 0], [1, 0]],
    }
    assert all(blocks.dtype == torch.int32 for blocks in chosen.values())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), quota=st.integers(1, 15))
def test_no_block_left_out_scores_better_than_one_taken(seed: int, quota: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {(3, target): torch.randn(2, 4, generator=generator) for target in ("k_proj", "v_proj")}
    taken = {
        (site, row, column) for site, blocks in select(scores, {3: quota}).items() for row, column in blocks.tolist()
    }
    values = {
        (site, row, column): float(grid[row, column])
        for site, grid in scores.items()
        for row in range(2)
        for column in range(4)
    }
    assert len(taken) == quota
    left = [value for block, value in values.items() if block not in taken]
    assert min(values[block] for block in taken) >= max(left)
