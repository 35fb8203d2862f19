"""Warm-up and block scores (eq. 2, 3)."""

import pytest
import torch

from adapters.blocks import WarmUp, block_means, blocks_at, by_site, ranked, standardise


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


def test_ranked_is_best_first_and_in_order_of_place_among_equals() -> None:
    scores = {(2, "v_proj"): torch.tensor([[1.0, 3.0]]), (1, "v_proj"): torch.tensor([[3.0], [2.0]])}
    assert ranked(scores) == [(1, "v_proj", 0, 0), (2, "v_proj", 0, 1), (1, "v_proj", 1, 0), (2, "v_proj", 0, 0)]


def test_blocks_by_site_and_back() -> None:
    blocks = [(2, "v_proj", 1, 0), (1, "o_proj", 0, 3), (2, "v_proj", 0, 2)]
    sites = by_site(blocks)
    assert list(sites) == [(1, "o_proj"), (2, "v_proj")]
    assert sites[2, "v_proj"].tolist() == [[0, 2], [1, 0]] and sites[2, "v_proj"].dtype == torch.int32
    assert blocks_at(sites) == frozenset(blocks)
