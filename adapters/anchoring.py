"""Elastic anchoring: a shared expert may learn on, held to what it was (eq. 9-12).

    L_reg  = Σ_i λ_i ‖W_i - Ŵ_i‖²                                      (eq. 9)
    λ_i    = λ_base · ω_i · δ_i,   ω_i = n_prior(i) / (t - 1)           (eq. 10)
    δ_i    = 1 + tanh(‖W_i - Ŵ_i‖ / max(‖Ŵ_i‖, ε))                      (eq. 11)
    L_gate = Σ_i λ_i · E_x[p_i(x)]                                      (eq. 12)

over the shared experts i that learn. `W_i` is what the expert holds, its blocks' deltas `B_b A_b`, and `Ŵ_i` their
snapshot before the task. Ours to choose: `λ_i` is a coefficient, taken anew at each step and not differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.blocks import Site
from adapters.sparse_lora import SparseDelta

EPSILON = 1e-6
"""ε of eq. 11: the smallest norm of a snapshot that drift is measured against."""


def strength(base: float, importance: float, drift: float, size: float) -> float:
    """`λ_i` from `λ_base`, `ω_i`, `‖W_i - Ŵ_i‖` and `‖Ŵ_i‖` (eq. 10, 11)."""
    return base * importance * (1 + math.tanh(drift / max(size, EPSILON)))


@dataclass(frozen=True)
class Anchor:
    """One shared expert that learns: its deltas, their snapshot `[n, l, l]` per site, and `ω_i`."""

    deltas: Mapping[Site, SparseDelta]
    snapshot: Mapping[Site, Tensor]
    importance: float

    @classmethod
    def take(cls, deltas: Mapping[Site, SparseDelta], num_prior: int, num_earlier: int) -> Anchor:
        """The snapshot before a task: `num_prior` of the `num_earlier` tasks learned so far use the expert."""
        with torch.no_grad():
            return cls(deltas, {site: delta.products() for site, delta in deltas.items()}, num_prior / num_earlier)

    def squared_drift(self) -> Tensor:
        """`‖W_i - Ŵ_i‖²`, differentiable."""
        drifts = [(delta.products() - self.snapshot[site]).pow(2).sum() for site, delta in self.deltas.items()]
        return torch.stack(drifts).sum()

    @property
    def size(self) -> float:
        """`‖Ŵ_i‖`."""
        return math.sqrt(sum(float(products.pow(2).sum()) for products in self.snapshot.values()))

    def strength(self, base: float, squared_drift: float) -> float:
        return strength(base, self.importance, math.sqrt(squared_drift), self.size)


@dataclass
class Anchors:
    """The anchors of all shared experts that learn, by expert id; `base` is `λ_base`."""

    by_expert: Mapping[str, Anchor]
    base: float

    def weight_penalty(self) -> tuple[Tensor, dict[str, float]]:
        """`L_reg` (eq. 9), a scalar, and every expert's `λ_i`."""
        drifts = {expert_id: anchor.squared_drift() for expert_id, anchor in self.by_expert.items()}
        strengths = {
            expert_id: self.by_expert[expert_id].strength(self.base, float(drift.detach()))
            for expert_id, drift in drifts.items()
        }
        return torch.stack([strengths[i] * drift for i, drift in drifts.items()]).sum(), strengths


def route_penalty(strengths: Mapping[str, float], probabilities: Mapping[str, Tensor]) -> Tensor:
    """`L_gate` (eq. 12), a scalar; `probabilities[expert] [n]`: the gate's softmax at the batch's n tokens."""
    return torch.stack([strength * probabilities[i].mean() for i, strength in strengths.items()]).sum()
