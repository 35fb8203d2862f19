"""The paper's gate: one linear layer and a softmax over the experts and "base", learned with the experts (eq. 14).

    x_t = the whitened direction of z̄_t      fixed, as the analytic gate's cosine sees it (`adapters.evidence`)
    p_t = softmax(W x_t + b)                 one row an expert, and a last one for "base", whose ΔW is zero

A token's gate of expert e is `p_t[e]`, if it is among the k largest; where base is likelier than not, every gate is
zero and the output is the base model's. What is kept is not renormalised: base is one of the softmax's experts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adapters.evidence import Columns, Evidence, whitened_direction

Expansion = Literal["logits", "mass"]

START_SHARPNESS = 10.0
START_COSINE = 0.4
"""A new task's own row starts as a soft test of the cosine to its mean direction; at this one it equals base's."""


@dataclass(frozen=True)
class SoftmaxGate:
    """Shapes: `base_mean [c]`, `base_whitener [c, c]`, `membership [tasks, experts]` of 0 and 1 (the manifest's),
    `weight [experts + 1, c]`, `bias [experts + 1]`, the last row base's, `keep [1]` (k of top-k).
    """

    kind: ClassVar[Literal["softmax"]] = "softmax"
    columns: ClassVar[Columns] = "experts"
    is_mixture: ClassVar[bool] = True

    projection: Tensor
    content_weight: Tensor
    content_bias: Tensor
    base_mean: Tensor
    base_whitener: Tensor
    membership: Tensor
    weight: Tensor
    bias: Tensor
    keep: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_evidence", Evidence(self.projection, self.content_weight, self.content_bias))
        object.__setattr__(self, "_top_k", int(self.keep))

    @property
    def top_k(self) -> int:
        return self._top_k  # type: ignore[attr-defined]

    @property
    def width(self) -> int:
        return self.projection.shape[1]

    @property
    def num_experts(self) -> int:
        return len(self.bias) - 1

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> SoftmaxGate:
        return SoftmaxGate(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @staticmethod
    def shapes(num_tasks: int, num_experts: int, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a generation's gate, by name; the projection first."""
        return {
            "projection": (hidden, width),
            "content_weight": (hidden,),
            "content_bias": (1,),
            "base_mean": (width,),
            "base_whitener": (width, width),
            "membership": (num_tasks, num_experts),
            "weight": (num_experts + 1, width),
            "bias": (num_experts + 1,),
            "keep": (1,),
        }

    def evidence(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._evidence(hidden)  # type: ignore[attr-defined]

    def features(self, pooled: Tensor) -> Tensor:
        """What the linear layer sees: `[..., c]` → `[..., c]`."""
        return whitened_direction(pooled, self.base_mean, self.base_whitener)

    def expert_probabilities(self, pooled: Tensor) -> Tensor:
        """`p_t`: pooled `[..., c]` → `[..., experts + 1]`, the last column is base; rows sum to 1."""
        return torch.softmax(self.features(pooled) @ self.weight.T + self.bias, dim=-1)

    def probabilities(self, pooled: Tensor) -> Tensor:
        """By task, `[..., tasks + 1]`: an expert's probability goes in equal parts to the tasks that use it."""
        return self.judge(pooled)[1]

    def decide(self, pooled: Tensor) -> Tensor:
        """Every expert's gate, `[..., experts]`; all zero where base is likelier than not."""
        return self.judge(pooled)[0]

    def judge(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """`decide` and `probabilities`, computed once."""
        experts = self.expert_probabilities(pooled)
        weights = largest(experts[..., :-1], self.top_k) * (experts[..., -1:] < 0.5)
        parts = (self.membership / self.membership.sum(0)).T
        return weights, torch.cat([experts[..., :-1] @ parts, experts[..., -1:]], dim=-1)

    def expanded(
        self, parents: Sequence[int | None], start: Tensor, membership: Tensor, settings: ExpansionSettings
    ) -> SoftmaxGate:
        """The gate over the experts after a task's splits, with logits as they were.

        `parents[e]`: whose row expert e takes over, None for the task's own new expert, which starts with `start_row`
        for prefix means `start [n, c]`. Of several successors, the one that keeps its tasks (the unique one) is
        slightly perturbed, so that they can part. Successors with their parent's logit have together n times its
        probability: with `keeps="mass"` each gets log n less, and no other expert's probability changes.
        """
        successors = Counter(parent for parent in parents if parent is not None)
        generator = torch.Generator().manual_seed(settings.seed)
        rows, biases = [], []
        for expert, parent in enumerate(parents):
            row, bias = self.start_row(start) if parent is None else (self.weight[parent], self.bias[parent])
            if parent is not None and successors[parent] > 1:
                is_old = int(membership[:, expert].sum()) == int(self.membership[:, parent].sum())
                noise = torch.nn.functional.normalize(torch.randn(self.width, generator=generator), dim=0)
                row = row + settings.perturbation * row.norm() * noise if is_old else row
                bias = bias - math.log(successors[parent]) if settings.keeps == "mass" else bias
            rows.append(row)
            biases.append(bias)
        return replace(
            self,
            membership=membership,
            weight=torch.stack([*rows, self.weight[-1]]),
            bias=torch.stack([*biases, self.bias[-1]]),
        )

    def start_row(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `[c]` and bias of a row that finds the task with these prefix means `[n, c]` from the start."""
        direction = self.features(pooled.double().mean(0).float())
        return START_SHARPNESS * direction, torch.tensor(-START_SHARPNESS * START_COSINE)


@dataclass(frozen=True)
class ExpansionSettings:
    """`keeps`: what a split leaves as it was, each successor's logit or their probabilities' sum. `perturbation`:
    relative to the row's length."""

    keeps: Expansion
    perturbation: float
    seed: int


def largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, zeros elsewhere; differentiable in what is kept."""
    if count >= values.shape[-1]:
        return values
    kept = values.topk(count, dim=-1)
    return torch.zeros_like(values).scatter(-1, kept.indices, kept.values)
