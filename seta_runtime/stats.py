"""Counts of what the router decided, kept where it decides and read by the server's `/metrics`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from seta_runtime.resident import ResidentGeneration


@dataclass
class RoutingStats:
    """Cumulative tokens since the engine started. A token counts for every expert with a gate above zero."""

    tokens_by_expert: Counter[str] = field(default_factory=Counter)
    tokens_by_task: Counter[str] = field(default_factory=Counter)
    base_tokens: int = 0
    routed_tokens: int = 0

    def count(self, generation: ResidentGeneration, task: int, num_tokens: int) -> None:
        """`num_tokens` tokens went to one task, or to base (`task` -1)."""
        if task < 0:
            self.base_tokens += num_tokens
            return
        self.routed_tokens += num_tokens
        self.tokens_by_task[generation.tasks[task]] += num_tokens
        for expert_id in generation.experts_of_task[task]:
            self.tokens_by_expert[expert_id] += num_tokens

    def count_mixture(self, generation: ResidentGeneration, weights: Tensor) -> None:
        """weights `[n, columns]`; the leading task counts, and every expert with a gate."""
        active = weights.any(-1)
        self.base_tokens += int((~active).sum())
        self.routed_tokens += int(active.sum())
        for task in generation.leading_tasks(weights[active]).tolist():
            self.tokens_by_task[generation.tasks[task]] += 1
        per_expert = (generation.expert_gates(weights) > 0).sum(0).tolist()
        for expert_id, num_tokens in zip(generation.experts, per_expert, strict=True):
            if num_tokens:
                self.tokens_by_expert[expert_id] += num_tokens

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens_by_expert": dict(self.tokens_by_expert),
            "tokens_by_task": dict(self.tokens_by_task),
            "base_tokens": self.base_tokens,
            "routed_tokens": self.routed_tokens,
        }
