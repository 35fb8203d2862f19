"""Counting: the vector operations against one token at a time, and what stays when a generation leaves."""

from __future__ import annotations

import bisect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.gate import AnalyticGate
from seta_runtime import stats as stats_module
from seta_runtime.resident import ResidentGeneration
from seta_runtime.stats import ENTROPY_BUCKETS, PROBABILITY_BUCKETS, RoutingStats
from tests.seta_runtime.random_experts import random_gate, random_generation

MEMBERSHIP = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]])


def make_generation(id: int = 1, keep: int = 1, seed: int = 0) -> ResidentGeneration:
    return random_generation(id, random_gate(16, 8, 3, seed=seed, keep=keep), MEMBERSHIP)


def random_probabilities(num_tokens: int, seed: int, num_tasks: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(num_tokens, num_tasks + 1, generator=generator) * 4, dim=-1)


def add(stats: RoutingStats, generation: ResidentGeneration, probabilities: Tensor) -> None:
    gate = generation.gate
    assert isinstance(gate, AnalyticGate)
    stats.add(generation, gate._likeliest(probabilities[:, :-1]), probabilities)


def reference(generation: ResidentGeneration, probabilities: Tensor) -> dict[str, Any]:
    """One token at a time."""
    entropy, probability = [0] * (len(ENTROPY_BUCKETS) + 1), [0] * (len(PROBABILITY_BUCKETS) + 1)
    by_task, by_expert, base = dict.fromkeys(generation.tasks, 0), dict.fromkeys(generation.experts, 0), 0
    entropies, leaders = [], []
    for row in probabilities.tolist():
        entropies.append(-sum(p * math.log(p) for p in row if p > 0))
        entropy[bisect.bisect_left(ENTROPY_BUCKETS, entropies[-1])] += 1
        best = max(row[:-1])
        if best <= 0.5:
            base += 1
            continue
        leaders.append(best)
        probability[bisect.bisect_left(PROBABILITY_BUCKETS, best)] += 1
        by_task[generation.tasks[row.index(best)]] += 1
        kept = sorted(range(len(row) - 1), key=lambda task: -row[task])[: generation.gate.top_k]
        for index, expert in enumerate(generation.experts):
            by_expert[expert] += any(MEMBERSHIP[task, index] for task in kept)
    return {
        "tokens_by_expert": {expert: n for expert, n in by_expert.items() if n},
        "tokens_by_task": by_task,
        "base_tokens": base,
        "entropy": {"counts": entropy, "sum": pytest.approx(sum(entropies), rel=1e-4)},
        "probability": {"counts": probability, "sum": pytest.approx(sum(leaders), rel=1e-4)},
    }


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=6), keep=st.sampled_from([1, 2]), seed=st.integers(0, 99)
)
def test_counts_are_those_of_one_token_at_a_time(steps: list[int], keep: int, seed: int) -> None:
    generation, stats = make_generation(keep=keep), RoutingStats()
    parts = [random_probabilities(n, seed + i) for i, n in enumerate(steps)]
    for part in parts:
        add(stats, generation, part)
    found, wanted = stats.as_dict(), reference(generation, torch.cat(parts))
    assert found["tokens_by_expert"] == wanted.pop("tokens_by_expert")
    assert found["base_tokens"] == wanted["base_tokens"]
    assert found["routed_tokens"] == sum(steps) - wanted["base_tokens"]
    assert found["generations"] == [{"adapter_id": 1} | wanted]


def test_how_often_it_counts_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generation, late, early = make_generation(), RoutingStats(), RoutingStats()
    for seed in range(20):
        add(late, generation, random_probabilities(7, seed))
    monkeypatch.setattr(stats_module, "MAX_PENDING_VALUES", 50)
    for seed in range(20):
        add(early, generation, random_probabilities(7, seed))
        assert early._num_pending < 50
    assert early.as_dict() == late.as_dict()


def test_what_a_step_made_can_be_counted_outside_of_it() -> None:
    generation, stats = make_generation(), RoutingStats()
    with torch.inference_mode():
        add(stats, generation, random_probabilities(5, 0))
        stats.as_dict()
        add(stats, generation, random_probabilities(5, 1))
    assert sum(stats.as_dict()["generations"][0]["entropy"]["counts"]) == 10


def test_a_sure_gate_has_no_entropy() -> None:
    generation, stats = make_generation(), RoutingStats()
    add(stats, generation, torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1]]))
    (found,) = stats.as_dict()["generations"]
    assert found["entropy"] == {"counts": [2] + [0] * len(ENTROPY_BUCKETS), "sum": 0.0}
    assert (sum(found["probability"]["counts"]), found["probability"]["sum"]) == (1, 1.0)


def test_generations_are_counted_apart_and_their_totals_stay() -> None:
    first, second, stats = make_generation(1), make_generation(2), RoutingStats()
    add(stats, first, random_probabilities(30, 1))
    add(stats, second, random_probabilities(20, 2))
    stats.add_base(second, 5)
    before = stats.as_dict()
    assert [sum(one["entropy"]["counts"]) for one in before["generations"]] == [30, 20]
    add(stats, first, random_probabilities(4, 3))
    stats.forget(1)
    after = stats.as_dict()
    assert [one["adapter_id"] for one in after["generations"]] == [2]
    assert after["base_tokens"] + after["routed_tokens"] == 59
    assert sum(after["tokens_by_expert"].values()) >= sum(before["tokens_by_expert"].values())
    stats.forget(1)
    stats.clear()
    assert stats == RoutingStats()
