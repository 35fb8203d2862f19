"""The gate while a task is learned: what it adds to the loss, worked out by hand, and what it learns."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters.calibrate import softmax_gate
from adapters.data import Tokens
from adapters.examples import Prepared
from adapters.gate_learning import BASE_SAMPLES, Learning
from adapters.softmax_gate import SoftmaxGate
from tests.adapters.test_gate import WIDTH, empty_gate


def even_gate(num_experts: int, keep: int = 4) -> SoftmaxGate:
    """Every row is zero: each of the experts and base has the same probability."""
    return replace(
        softmax_gate(empty_gate(keep=float(keep))),
        membership=torch.eye(num_experts),
        weight=torch.zeros(num_experts + 1, WIDTH),
        bias=torch.zeros(num_experts + 1),
    )


def uneven_gate() -> SoftmaxGate:
    return replace(even_gate(1), weight=torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2)))


def prepared(*lengths: int) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    pooled = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    return Prepared([Tokens([1], [2], "") for _ in lengths], pooled, pooled, [])


def general() -> Tensor:
    return torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(1)) - 5


def learning(gate: SoftmaxGate, *ids: str) -> Learning:
    return Learning(gate, ids, general(), seed=0)


def test_base_costs_the_log_of_its_probability_on_general_text() -> None:
    """Three experts and base, all even: -log 1/4."""
    (base,) = learning(even_gate(3), "a", "b", "c").penalties(prepared(4), [0], {})
    assert float(base.detach()) == pytest.approx(math.log(4), rel=1e-5)


def test_route_penalty_is_the_shared_experts_mean_probability_times_their_strength() -> None:
    """Two shared experts of strength 0.5 and 2, each of probability 1/4 at every token: (0.5 + 2) / 4 (eq. 12)."""
    gate = learning(even_gate(3), "a", "ab", "abc")
    _, routes = gate.penalties(prepared(4, 7), [0, 1], {"ab": 0.5, "abc": 2.0})
    assert float(routes.detach()) == pytest.approx(2.5 / 4, rel=1e-5)
    routes.backward()
    grad = gate.bias.grad
    assert grad is not None, "d/db_j of sum(l_i p_i) is p_j (l_j - sum(l_i p_i))"
    torch.testing.assert_close(grad, torch.tensor([0.0, 0.5, 2.0, 0.0]) / 4 - 2.5 / 16)


def test_the_batchs_tokens_count_alike() -> None:
    """The mean of eq. 12 is over tokens, not over examples."""
    gate, data = learning(uneven_gate(), "a"), prepared(2, 9)
    _, routes = gate.penalties(data, [0, 1], {"a": 1.0})
    each = torch.cat([gate.gate().expert_probabilities(data.pooled[i])[:, 0] for i in (0, 1)])
    assert float(routes.detach()) == pytest.approx(float(each.mean()), rel=1e-4)


def test_weights_are_the_gates_decisions_but_for_the_cut_at_base() -> None:
    gate = replace(even_gate(3, keep=2), weight=torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3)))
    data = prepared(40)
    weights = learning(gate, "a", "b", "c").weights(data, 0)
    decided = gate.decide(data.pooled[0])
    is_known = decided.any(-1)
    assert bool(is_known.any())
    torch.testing.assert_close(weights[is_known].detach(), decided[is_known])
    assert bool((weights.detach() > 0).sum(-1).eq(2).all())
    weights.sum().backward()


def test_learning_teaches_what_base_is_and_the_start_is_left_alone() -> None:
    start = even_gate(2)
    gate = learning(start, "a", "b")
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        torch.stack(gate.penalties(prepared(3), [0], {})).sum().backward()
        optimiser.step()
    learned = gate.gate()
    assert float(learned.expert_probabilities(general())[:, -1].min()) > 0.8
    assert not learned.decide(general()).any()
    assert torch.equal(start.weight, torch.zeros(3, WIDTH))
    assert not learned.weight.requires_grad


def test_the_same_seed_draws_the_same_general_text() -> None:
    draws = []
    for gate in (learning(uneven_gate(), "a"), learning(uneven_gate(), "a")):
        draws.append([float(gate.penalties(prepared(2), [0], {})[0].detach()) for _ in range(3)])
    assert draws[0] == draws[1] and len(set(draws[0])) == 3
    assert BASE_SAMPLES < 500
