"""The target projections with the routed update added in place: `y = W0 x + sum_e g_e ΔW_e x` (eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from seta_runtime.ops.cpu import add_routed
from seta_runtime.state import StepState


@dataclass(frozen=True)
class OutputSlice:
    """Where one target's output lies inside a packed projection: q, k and v share one matrix in the engine."""

    layer: int
    target: str
    start: int
    size: int


class RoutedProjection(nn.Module):
    """A projection of the engine, packed or not, with the experts of every target in it.

    Called and answered exactly as the module it wraps: some return a tensor, most `(output, bias)`.
    """

    def __init__(self, base: nn.Module, state: StepState, slices: list[OutputSlice]) -> None:
        super().__init__()
        self.base = base
        self.state = state
        self.slices = slices

    def forward(self, x: Tensor) -> Any:
        result = self.base(x)
        groups = self.state.groups
        if groups:
            output = result[0] if isinstance(result, tuple) else result
            for part in self.slices:
                y = output[:, part.start : part.start + part.size]
                for group in groups:
                    experts = group.generation.projections.get((part.layer, part.target))
                    if experts is not None:
                        add_routed(y, x, experts, group.rows, group.task, group.gates)
        return result

    def __getattr__(self, name: str) -> Any:
        """The engine reads attributes of its own projections (sizes, quantisation): the wrapped module has them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)
