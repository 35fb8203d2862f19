"""What every gate reads: evidence from the frozen trunk, pooled over the prefix.

    z_t = Uᵀ rmsnorm(h_t)            evidence: a fixed projection of the residual stream that enters layer m
    z̄_t = Σ_{u≤t} w_u z_u / Σ w_u    pooled over the prefix; w_u: near 1 for content, small for the chat template

These features cannot drift, because the trunk carries no experts. Torch only: training and serving run this very code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

RMS_EPS = 1e-6
LOG_WEIGHT_FLOOR = -8.0
"""The log-weight of a token that is surely the chat template's: it counts e^-8 of a content token."""

Columns = Literal["tasks", "experts"]


def rms_normalised(hidden: Tensor) -> Tensor:
    """`h / rms(h)` without a weight, float32: what the gate's fixed parts are made from and applied to."""
    x = hidden.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + RMS_EPS)


def prefix_mean(z: Tensor, log_weight: Tensor) -> Tensor:
    """`z̄_t`: z `[..., T, c]`, log_weight `[..., T]` → `[..., T, c]`; what the engine's pooling attention computes."""
    weight = log_weight.exp().unsqueeze(-1)
    return (z * weight).cumsum(-2) / weight.cumsum(-2)


def whitened_direction(pooled: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """The direction of prefix means `[..., c]` from general text's mean, of length 1, in the space that whitens it."""
    return torch.nn.functional.normalize((pooled - mean) @ whitener, dim=-1)


@dataclass(frozen=True)
class Evidence:
    """Made once per base model: `projection [d, c]`, `content_weight [d]`, `content_bias [1]`."""

    projection: Tensor
    content_weight: Tensor
    content_bias: Tensor

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden `[..., d]` → evidence z `[..., c]` and log-weight `[...]`, both float32."""
        x = rms_normalised(hidden)
        content = (x @ self.content_weight + self.content_bias).clamp(0, 1)
        return x @ self.projection, (1 - content) * LOG_WEIGHT_FLOOR


class Gate(Protocol):
    """What training and serving need of a gate.

    `columns`: what it decides on, so what `decide` has columns for. `is_mixture`: whether a token may get anything but
    one column with weight 1.
    """

    @property
    def kind(self) -> Literal["analytic", "softmax"]: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def is_mixture(self) -> bool: ...
    @property
    def top_k(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def width(self) -> int: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def evidence(self, hidden: Tensor) -> tuple[Tensor, Tensor]: ...
    def probabilities(self, pooled: Tensor) -> Tensor:
        """pooled `[..., c]` → `[..., tasks + 1]`, whatever the columns; the last is "base"; rows sum to 1."""
        ...

    def judge(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """`decide` and `probabilities`, computed once."""

    def decide(self, pooled: Tensor) -> Tensor:
        """The weights that serve, `[..., columns]`; all zero for base."""
        ...

    def to(self, device: torch.device) -> Self: ...
