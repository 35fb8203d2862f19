"""What the gate decided, counted where it decides and read by the server's `/metrics`.

A step only keeps a reference to the probabilities it computed anyway. They are counted when enough of them have come
together, or when somebody asks: a few vector operations for thousands of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seta_runtime.resident import ResidentGeneration

ENTROPY_BUCKETS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
"""Nats. A gate that is sure has 0, one that wavers between two answers ln 2 = 0.69."""
PROBABILITY_BUCKETS = (0.25, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Of the leading task, for tokens that were routed; a gate over tasks only routes above 0.5."""
MAX_PENDING_VALUES = 1 << 16
"""Probabilities kept before they are counted: 256 KiB."""


class TensorHistogram:
    """`counts[i]` values are above the bucket before and at most `buckets[i]`; the last count is of those above all."""

    def __init__(self, buckets: Sequence[float], device: torch.device) -> None:
        self.counts = torch.zeros(len(buckets) + 1, dtype=torch.int64, device=device)
        self.sum = torch.zeros((), dtype=torch.float64, device=device)
        self._buckets = torch.tensor(buckets, dtype=torch.float32, device=device)

    def add(self, values: Tensor) -> None:
        """values `[n]` float32."""
        self.counts += torch.bincount(torch.bucketize(values, self._buckets), minlength=len(self.counts))
        self.sum += values.sum(dtype=torch.float64)

    def as_dict(self) -> dict[str, Any]:
        return {"counts": self.counts.tolist(), "sum": float(self.sum)}


class GenerationStats:
    """One resident generation's tokens. `by_task[tasks]` counts by leading task; base tokens are counted apart."""

    def __init__(self, generation: ResidentGeneration) -> None:
        device = generation.membership.device
        self.generation = generation
        self.by_task = torch.zeros(len(generation.tasks), dtype=torch.int64, device=device)
        self.base_tokens = 0
        self.entropy = TensorHistogram(ENTROPY_BUCKETS, device)
        self.probability = TensorHistogram(PROBABILITY_BUCKETS, device)

    def add(self, weights: Tensor, probabilities: Tensor) -> Tensor:
        """weights `[n, columns]`, probabilities `[n, tasks + 1]`, "base" last.

        Returns how many tokens each expert answered, `[experts]`.
        """
        is_routed = weights.any(-1)
        routed_tasks = self.generation.leading_tasks(weights[is_routed])
        leading = probabilities[:, :-1].amax(-1)
        self.by_task += torch.bincount(routed_tasks, minlength=len(self.by_task))
        self.base_tokens += len(probabilities) - len(routed_tasks)
        self.entropy.add(torch.special.entr(probabilities).sum(-1))
        self.probability.add(leading[is_routed])
        return (self.generation.expert_gates(weights) > 0).sum(0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens_by_task": dict(zip(self.generation.tasks, self.by_task.tolist(), strict=True)),
            "base_tokens": self.base_tokens,
            "entropy": self.entropy.as_dict(),
            "probability": self.probability.as_dict(),
        }


@dataclass
class RoutingStats:
    """Cumulative tokens since the engine started. A token counts for every expert with a gate above zero.

    The totals stay when a generation leaves memory; what is kept by generation (by the engine's adapter id) goes.
    """

    tokens_by_expert: Counter[str] = field(default_factory=Counter)
    base_tokens: int = 0
    routed_tokens: int = 0
    generations: dict[int, GenerationStats] = field(default_factory=dict)
    _pending: list[tuple[ResidentGeneration, Tensor, Tensor]] = field(default_factory=list)
    _num_pending: int = 0

    def add(self, generation: ResidentGeneration, weights: Tensor, probabilities: Tensor) -> None:
        """One step's decisions of one generation (`Gate.judge`); nobody may write to them afterwards."""
        self._pending.append((generation, weights, probabilities))
        self._num_pending += probabilities.numel()
        if self._num_pending >= MAX_PENDING_VALUES:
            self._count()

    def add_base(self, generation: ResidentGeneration, num_tokens: int) -> None:
        """Tokens of a generation without tasks: there was nothing to decide."""
        self._of(generation).base_tokens += num_tokens
        self.base_tokens += num_tokens

    def forget(self, adapter_id: int) -> None:
        """The generation leaves memory."""
        self._count()
        self.generations.pop(adapter_id, None)

    def clear(self) -> None:
        """Nothing has happened yet: the engine has only warmed up."""
        self.__init__()  # type: ignore[misc]

    def as_dict(self) -> dict[str, Any]:
        self._count()
        return {
            "tokens_by_expert": dict(self.tokens_by_expert),
            "base_tokens": self.base_tokens,
            "routed_tokens": self.routed_tokens,
            "generations": [{"adapter_id": id} | stats.as_dict() for id, stats in sorted(self.generations.items())],
        }

    @torch.inference_mode()  # as in the engine's steps: what is made there may not be written to outside
    def _count(self) -> None:
        by_adapter: dict[int, tuple[ResidentGeneration, list[tuple[Tensor, Tensor]]]] = {}
        for generation, weights, probabilities in self._pending:
            by_adapter.setdefault(generation.id, (generation, []))[1].append((weights, probabilities))
        self._pending, self._num_pending = [], 0
        for generation, parts in by_adapter.values():
            self._count_one(generation, *(torch.cat(part) for part in zip(*parts, strict=True)))

    def _count_one(self, generation: ResidentGeneration, weights: Tensor, probabilities: Tensor) -> None:
        stats = self._of(generation)
        base_before = stats.base_tokens
        per_expert = stats.add(weights, probabilities).tolist()
        base_tokens = stats.base_tokens - base_before
        self.base_tokens += base_tokens
        self.routed_tokens += len(probabilities) - base_tokens
        for expert_id, num_tokens in zip(generation.experts, per_expert, strict=True):
            if num_tokens:
                self.tokens_by_expert[expert_id] += num_tokens

    def _of(self, generation: ResidentGeneration) -> GenerationStats:
        found = self.generations.get(generation.id)
        if found is None:
            found = self.generations[generation.id] = GenerationStats(generation)
        return found
