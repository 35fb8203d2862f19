"""The router: its decisions are the gate's own, and its groups name exactly the tokens that need an expert."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.evidence import prefix_mean
from adapters.gate import AnalyticGate
from seta_runtime.ops.experts import ProjectionExperts
from seta_runtime.ops.paired import PairedExperts
from seta_runtime.resident import ResidentGeneration
from seta_runtime.route import COUNTED_IN_PYTHON, PoolShape, RoutedDecoderLayer, Router, counted
from seta_runtime.state import StepState
from seta_runtime.stats import RoutingStats
from tests.seta_runtime.random_experts import random_gate, random_generation, random_softmax_gate

HIDDEN, WIDTH, LENGTH = 32, 12, 40
SHAPE = PoolShape(num_heads=4, num_kv_heads=2, head_size=8)
ONE_EXPERT_A_TASK = torch.eye(3)


def softmax_pool(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Exact causal attention of one sequence, scale 1, grouped heads: what the engine's pooling layer computes."""
    q = query.view(-1, SHAPE.num_kv_heads, SHAPE.num_heads // SHAPE.num_kv_heads, SHAPE.head_size)
    k, v = (t.view(-1, SHAPE.num_kv_heads, SHAPE.head_size) for t in (key, value))
    scores = torch.einsum("tghd,ugd->ghtu", q, k)
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return torch.einsum("ghtu,ugd->tghd", weights, v).reshape(len(q), -1)


def hidden_states(seed: int = 0, length: int = LENGTH) -> Tensor:
    """Residual streams of very different norms, as a trunk's are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, HIDDEN, generator=generator) * torch.logspace(-1, 2, length).unsqueeze(-1)


def make_router(*generations: ResidentGeneration | None) -> Router:
    return Router(StepState(list(generations)), softmax_pool, SHAPE, RoutingStats())


def route(router: Router, hidden: Tensor, token_slots: list[int]) -> None:
    router.state.begin_step(torch.tensor(token_slots))
    router(hidden)


def decided(router: Router, generation: ResidentGeneration, num_tokens: int) -> list[int]:
    """The task that each token was grouped under, -1 for none; a token in two groups is a failure."""
    tasks = torch.full((num_tokens,), -1)
    for group in (g for g in router.state.groups if g.generation is generation):
        rows = torch.arange(num_tokens) if group.rows is None else group.rows
        assert group.task is not None and group.mixture is None
        assert bool((tasks[rows] == -1).all())
        tasks[rows] = group.task
    return tasks.tolist()


def expected_tasks(gate: AnalyticGate, hidden: Tensor) -> list[int]:
    weights = gate.decide(prefix_mean(*gate.evidence(hidden)))
    return torch.where(weights.any(-1), weights.argmax(-1), -1).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_decisions_are_the_gates_own(seed: int) -> None:
    gate = random_gate(HIDDEN, WIDTH, 3, seed=seed)
    generation = random_generation(1, gate, ONE_EXPERT_A_TASK)
    router, hidden = make_router(generation), hidden_states(seed)
    pooled = router._pooled(hidden, [(generation, None)])[:, :WIDTH]
    torch.testing.assert_close(pooled, prefix_mean(*gate.evidence(hidden)), rtol=0, atol=1e-5)
    route(router, hidden, [0] * LENGTH)
    assert decided(router, generation, LENGTH) == expected_tasks(gate, hidden)


def test_the_random_gates_route_to_every_task_and_to_base() -> None:
    """So the test above compares something."""
    found = {t for s in range(6) for t in expected_tasks(random_gate(HIDDEN, WIDTH, 3, seed=s), hidden_states(s))}
    assert found == {-1, 0, 1, 2}


def test_two_generations_base_tokens_and_padding() -> None:
    """One sequence for the pool, so the members' prefixes mix; then each member's gate decides on its own rows."""
    narrow, wide = random_gate(HIDDEN, 5, 3, seed=1), random_gate(HIDDEN, WIDTH, 3, seed=2)
    old, new = random_generation(1, narrow, ONE_EXPERT_A_TASK), random_generation(2, wide, ONE_EXPERT_A_TASK)
    router, hidden = make_router(old, None, new), hidden_states(3)
    slots = [0] * 12 + [-1] * 6 + [2] * 16  # six more tokens pad the batch
    route(router, hidden, slots)

    old_rows, new_rows = torch.arange(12), torch.arange(18, 34)
    pooled = router._pooled(hidden, [(old, old_rows), (new, new_rows)])
    for generation, gate, rows in ((old, narrow, old_rows), (new, wide, new_rows)):
        weights = gate.decide(pooled[rows, : gate.width])
        wanted = torch.full((LENGTH,), -1)
        wanted[rows] = torch.where(weights.any(-1), weights.argmax(-1), -1)
        assert decided(router, generation, LENGTH) == wanted.tolist()
    assert {id(group.generation) for group in router.state.groups} == {id(old), id(new)}


def test_a_members_evidence_stays_in_its_own_rows() -> None:
    gate = random_gate(HIDDEN, WIDTH, 3)
    generation, seen = random_generation(1, gate, ONE_EXPERT_A_TASK), []

    def record(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append((key.view(-1, SHAPE.num_kv_heads, SHAPE.head_size), value))
        return softmax_pool(query, key, value)

    router, hidden = Router(StepState([generation]), record, SHAPE, RoutingStats()), hidden_states()
    rows = torch.arange(3, 9)
    route(router, hidden, [-1] * 3 + [0] * 6 + [-1] * (LENGTH - 9))
    (key, value), (z, log_weight) = seen[0], gate.evidence(hidden[rows])
    assert torch.equal(value[rows, :WIDTH], z) and torch.equal(key[rows, 0, 0], log_weight)
    others = torch.ones(LENGTH, dtype=torch.bool)
    others[rows] = False
    assert not value[others].any() and not key[others].any() and not value[:, WIDTH:].any()


def test_steps_of_base_tokens_alone_do_nothing() -> None:
    def refuse(*_: Tensor) -> Tensor:
        raise AssertionError("nothing to pool")

    generation = random_generation(1, random_gate(HIDDEN, WIDTH, 3), ONE_EXPERT_A_TASK)
    router = Router(StepState([generation]), refuse, SHAPE, RoutingStats())
    route(router, hidden_states(), [-1] * LENGTH)
    assert router.state.groups == []
    assert router.stats == RoutingStats()


def with_forms(*forms: PairedExperts | ProjectionExperts) -> ResidentGeneration:
    projections = {(layer, "v_proj"): form for layer, form in enumerate(forms)}
    return replace(random_generation(1, random_gate(HIDDEN, WIDTH, 3), torch.eye(3)), projections=projections)


FOR_C, FOR_TORCH = PairedExperts([]), ProjectionExperts([], None, [], [])


def test_few_tokens_of_several_tasks_are_one_group_too() -> None:
    """Its rows are those of the groups that it stands for, each with its own task."""
    generation = with_forms(FOR_TORCH)
    router = make_router(generation)
    rows, task_of = torch.tensor([1, 2, 4, 7, 9]), torch.tensor([2, 0, -1, 1, 2])
    weights = torch.nn.functional.one_hot(task_of.clamp(min=0), 3).float() * (task_of >= 0).unsqueeze(-1)
    router._add_groups(generation, rows, weights, torch.zeros(12, 8, dtype=torch.bfloat16))
    groups = router.state.groups
    assert [group.task for group in groups] == [0, 1, 2]
    together = groups[0].together
    assert together is not None and all(group.together is together for group in groups)
    assert together.rows is not None and together.rows.tolist() == [1, 2, 7, 9]
    assert (together.pick % len(together.tasks) + together.tasks.start).tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize(
    ("dtype", "forms", "has_together"),
    [
        (torch.bfloat16, [FOR_C], False),
        (torch.bfloat16, [FOR_C, FOR_TORCH], True),
        (torch.bfloat16, [FOR_TORCH], True),
        (torch.float32, [FOR_TORCH], False),
    ],
)
def test_a_step_is_prepared_for_the_forms_that_read_it(
    dtype: torch.dtype, forms: list[PairedExperts | ProjectionExperts], has_together: bool
) -> None:
    """Blocks that the product in C does not take are torch's, on a machine that has it, too."""
    generation = with_forms(*forms)
    router = make_router(generation)
    router._add_groups(generation, None, torch.eye(3), torch.zeros(3, 8, dtype=dtype))
    groups = router.state.groups
    assert [(group.task, group.together is not None) for group in groups] == [(t, has_together) for t in range(3)]
    assert {group.by_task is not None for group in groups} == {FOR_C in forms}
    assert len({id(group.by_task) for group in groups}) == 1, "one call does them all"


def test_groups_of_the_last_step_are_gone() -> None:
    generation = random_generation(1, random_gate(HIDDEN, WIDTH, 3, seed=2), ONE_EXPERT_A_TASK)
    router = make_router(generation)
    route(router, hidden_states(), [0] * LENGTH)
    assert router.state.groups
    router.state.begin_step(torch.full((LENGTH,), -1))
    assert router.state.groups == []
    route(router, hidden_states(), [0] * LENGTH)
    router.state.token_slots = torch.full((LENGTH,), -1)  # the engine does not repeat an unchanged mapping
    router(hidden_states())
    assert router.state.groups == []


@pytest.mark.parametrize("keep", [1, 2])
def test_a_generation_without_tasks_is_base(keep: int) -> None:
    generation = random_generation(1, random_gate(HIDDEN, WIDTH, 0, keep=keep), torch.zeros(0, 0))
    router = make_router(generation)
    route(router, hidden_states(), [0] * LENGTH)
    assert router.state.groups == []
    stats = router.stats.as_dict()
    assert (stats["tokens_by_expert"], stats["base_tokens"], stats["routed_tokens"]) == ({}, LENGTH, 0)


def test_one_task_for_all_tokens_needs_no_rows() -> None:
    gate = random_gate(HIDDEN, WIDTH, 1)
    eager = AnalyticGate(**{**gate.tensors(), "threshold": torch.tensor([-2.0])})
    router = make_router(random_generation(1, eager, torch.ones(1, 1)))
    route(router, hidden_states(), [0] * LENGTH)
    assert [(group.rows, group.task) for group in router.state.groups] == [(None, 0)]


def test_stats_count_every_token_once() -> None:
    gate = random_gate(HIDDEN, WIDTH, 3, seed=2)
    membership = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    generation = random_generation(1, gate, membership)
    router = make_router(generation)
    for step in range(3):
        route(router, hidden_states(step), [0] * LENGTH)
    tasks = [t for step in range(3) for t in expected_tasks(gate, hidden_states(step))]
    counts = [tasks.count(t) for t in range(3)]
    stats = router.stats.as_dict()
    assert stats["base_tokens"] == tasks.count(-1) and stats["routed_tokens"] == sum(counts)
    assert stats["generations"][0]["tokens_by_task"] == {f"task{t}": n for t, n in enumerate(counts)}
    by_expert = {"expert0": counts[0], "expert1": counts[1], "expert2": sum(counts)}
    assert stats["tokens_by_expert"] == {expert: n for expert, n in by_expert.items() if n}


@pytest.mark.parametrize("slots", [[0] * LENGTH, [-1] * 10 + [0] * 30])
def test_a_mixture_gives_every_expert_its_gate(slots: list[int]) -> None:
    """top-2: `g = p @ M` per token, for the tokens that are not base."""
    gate = random_gate(HIDDEN, WIDTH, 3, seed=4, keep=2)
    membership = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 1, 0]]).float()
    generation = random_generation(1, gate, membership)
    router, hidden = make_router(generation), hidden_states(4)
    route(router, hidden, slots)
    mine = (torch.tensor(slots) == 0).nonzero().flatten()
    pooled = router._pooled(hidden, [(generation, None if len(mine) == LENGTH else mine)])[:, :WIDTH]
    weights = gate.decide(pooled[mine])
    active = weights.any(-1)
    assert bool(active.any()) and not bool(active.all())
    (group,) = router.state.groups
    assert group.task is None and group.rows is not None and group.mixture is not None
    assert torch.equal(group.rows, mine[active])
    torch.testing.assert_close(group.mixture.gates, weights[active] @ membership)
    stats = router.stats.as_dict()
    assert stats["routed_tokens"] == int(active.sum())
    assert stats["base_tokens"] == int((~active).sum())
    leads = weights[active].argmax(-1).tolist()
    assert stats["generations"][0]["tokens_by_task"] == {f"task{t}": leads.count(t) for t in range(3)}


def test_a_gate_over_experts_gives_every_expert_its_own_gate() -> None:
    """The softmax gate: its columns are the experts; two tasks, of which one has a shared expert alone."""
    membership = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 1, 0]])
    gate = random_softmax_gate(HIDDEN, WIDTH, membership, keep=2)
    generation = random_generation(1, gate, membership)
    router, hidden = make_router(generation), hidden_states(4)
    route(router, hidden, [0] * LENGTH)
    pooled = router._pooled(hidden, [(generation, None)])[:, :WIDTH]
    weights = gate.decide(pooled)
    active = weights.any(-1)
    assert bool(active.any()) and not bool(active.all()) and bool((weights > 0).sum(-1).eq(2).any())
    (group,) = router.state.groups
    assert group.task is None and group.rows is not None and group.mixture is not None
    assert torch.equal(group.rows, active.nonzero().flatten())
    torch.testing.assert_close(group.mixture.gates, weights[active])
    assert group.mixture.active.tolist() == [expert for expert in range(3) if bool((weights[:, expert] > 0).any())]
    stats = router.stats.as_dict()
    assert stats["routed_tokens"] == int(active.sum()) and stats["base_tokens"] == int((~active).sum())
    assert sum(stats["generations"][0]["tokens_by_task"].values()) == stats["routed_tokens"]
    by_expert = {f"expert{e}": int(n) for e, n in enumerate((weights > 0).sum(0)) if n}
    assert stats["tokens_by_expert"] == by_expert
    one = torch.tensor([[0.0, 0.0, 0.6], [0.1, 0.7, 0.2]])
    assert generation.leading_tasks(one).tolist() == [0, 2], "shared alone: the first of its tasks"


def test_the_router_sees_the_residual_stream() -> None:
    """vLLM's layers pass `hidden` and `residual` apart; layer m's input is their sum."""
    seen = []
    router = make_router(None)
    router.forward = seen.append  # type: ignore[method-assign]
    layer = RoutedDecoderLayer(torch.nn.Identity(), router)
    layer.layer.forward = lambda positions, hidden, residual: (hidden, residual)  # type: ignore[method-assign]
    hidden, residual = hidden_states(0), hidden_states(1)
    assert layer(torch.arange(LENGTH), hidden, residual) == (hidden, residual)
    layer(torch.arange(LENGTH), hidden, None)
    assert torch.equal(seen[0], hidden + residual) and torch.equal(seen[1], hidden)


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=2 * COUNTED_IN_PYTHON))
@settings(max_examples=30, deadline=None)
def test_counting_is_the_same_for_few_and_for_many(values: list[int]) -> None:
    assert counted(torch.tensor(values)) == {value: values.count(value) for value in set(values)}
