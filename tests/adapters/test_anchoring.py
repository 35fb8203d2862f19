"""Elastic anchoring (eq. 9-12) on cases worked out by hand."""

import math

import pytest
import torch

from adapters.anchoring import EPSILON, Anchor, Anchors, route_penalty, strength
from adapters.blocks import Site
from adapters.sparse_lora import SparseDelta


def rank_one(site: Site, b: float) -> dict[Site, SparseDelta]:
    """One block of 2 x 2: `B = (b, 0)ᵀ`, `A = (3, 4)`; its product has norm 5 b."""
    a = torch.tensor([[[3.0, 4.0]]])
    return {site: SparseDelta(torch.tensor([[0, 0]], dtype=torch.int32), a, torch.tensor([[[b], [0.0]]]), (2, 2))}


def test_strength_of_a_hand_case() -> None:
    """Drift as large as the expert: delta = 1 + tanh 1; two of four earlier tasks rely on it."""
    assert strength(0.1, 2 / 4, drift=3.0, size=3.0) == pytest.approx(0.1 * 0.5 * (1 + math.tanh(1)))
    assert strength(0.1, 1.0, drift=0.0, size=3.0) == pytest.approx(0.1)


def test_strength_of_an_expert_that_was_zero_is_bounded() -> None:
    assert strength(1.0, 1.0, drift=1.0, size=0.0) == pytest.approx(2.0)
    assert strength(1.0, 1.0, drift=EPSILON, size=0.0) == pytest.approx(1 + math.tanh(1))


def test_weight_penalty_of_a_hand_case() -> None:
    """Two shared experts: one moved from norm 5 to 10 (drift 5), used by both earlier tasks; one stayed."""
    moved, still = rank_one((1, "v_proj"), 1.0), rank_one((2, "v_proj"), 2.0)
    anchors = Anchors({"moved": Anchor.take(moved, 2, 2), "still": Anchor.take(still, 1, 2)}, base=0.1)
    with torch.no_grad():
        moved[1, "v_proj"].b.mul_(2)
    penalty, strengths = anchors.weight_penalty()
    assert strengths == pytest.approx({"moved": 0.1 * (1 + math.tanh(1)), "still": 0.1 * 0.5})
    assert float(penalty.detach()) == pytest.approx(0.1 * (1 + math.tanh(1)) * 25, rel=1e-5)


def test_the_penalty_pulls_back_with_the_strength_as_a_coefficient() -> None:
    """d/db of λ (5b - 5)² at b = 2 is λ · 2 · 5 · 5, with A held; λ itself is not differentiated."""
    deltas = rank_one((1, "v_proj"), 1.0)
    anchor = Anchor.take(deltas, 1, 1)
    with torch.no_grad():
        deltas[1, "v_proj"].b.mul_(2)
    penalty, strengths = Anchors({"x": anchor}, base=0.1).weight_penalty()
    penalty.backward()
    grad = deltas[1, "v_proj"].b.grad
    assert grad is not None and float(grad[0, 0, 0]) == pytest.approx(strengths["x"] * 50, rel=1e-5)


def test_drift_is_taken_over_all_sites() -> None:
    deltas = rank_one((1, "v_proj"), 1.0) | rank_one((2, "v_proj"), 2.0)
    anchor = Anchor.take(deltas, 1, 1)
    assert anchor.size == pytest.approx(math.sqrt(25 + 100))
    with torch.no_grad():
        for delta in deltas.values():
            delta.b.zero_()
    assert float(anchor.squared_drift().detach()) == pytest.approx(125)


def test_route_penalty_of_a_hand_case() -> None:
    """0.1 · mean(0.2, 0.6) + 0.5 · mean(0, 1)."""
    probabilities = {"x": torch.tensor([0.2, 0.6]), "y": torch.tensor([0.0, 1.0])}
    assert float(route_penalty({"x": 0.1, "y": 0.5}, probabilities)) == pytest.approx(0.29)
