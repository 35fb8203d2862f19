"""The target projections with the routed update added in place: `y = W0 x + sum_e g_e ΔW_e x` (eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seta_runtime.ops import fused
from seta_runtime.ops.cpu import Together, add_routed, add_together
from seta_runtime.ops.experts import ProjectionExperts
from seta_runtime.ops.paired import PairedExperts, product
from seta_runtime.ops.task_rows import TaskRows
from seta_runtime.ranks import ALONE, Ranks
from seta_runtime.resident import ResidentGeneration
from seta_runtime.state import RoutedGroup, StepState


@dataclass(frozen=True)
class OutputSlice:
    """Where one target's output lies inside a packed projection: q, k and v share one matrix in the engine.

    `is_partial`: this rank has a part of the inputs, so its update is a part of a sum over the ranks.
    """

    layer: int
    target: str
    start: int
    size: int
    is_partial: bool = False


class WrappedProjection(nn.Module):
    """A projection of the engine, packed or not, with the experts of every target in it.

    Called and answered exactly as the module it wraps: some return a tensor, most `(output, bias)`.
    """

    def __init__(self, base: nn.Module, slices: list[OutputSlice]) -> None:
        super().__init__()
        self.base = base
        self.slices = slices

    def __getattr__(self, name: str) -> Any:
        """The engine reads attributes of its own projections (sizes, quantisation): the wrapped module has them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class RoutedProjection(WrappedProjection):
    """For a CPU: goes through the groups that the router made of the step's tokens."""

    def __init__(self, base: nn.Module, state: StepState, slices: list[OutputSlice], ranks: Ranks = ALONE) -> None:
        super().__init__(base, slices)
        self.state = state
        self.ranks = ranks
        product()  # what has to be compiled is compiled before the first request

    def forward(self, x: Tensor) -> Any:
        result = self.base(x)
        groups = self.state.groups
        if groups:
            output = result[0] if isinstance(result, tuple) else result
            for part in self.slices:
                y = output[:, part.start : part.start + part.size]
                if part.is_partial:  # the groups are every rank's, so all of them come here or none
                    update = torch.zeros_like(y)
                    self._add(update, x, part, groups)
                    y.add_(self.ranks.add(update))
                else:
                    self._add(y, x, part, groups)
        return result

    def _add(self, y: Tensor, x: Tensor, part: OutputSlice, groups: list[RoutedGroup]) -> None:
        done: Together | TaskRows | None = None
        for group in groups:
            experts = group.generation.projections.get((part.layer, part.target))
            if experts is None:
                continue
            if isinstance(experts, PairedExperts):
                assert group.by_task is not None  # a generation with mixtures is never in this form
                if group.by_task is not done:
                    experts.add(y, x, group.by_task)
                done = group.by_task
                continue
            assert isinstance(experts, ProjectionExperts)
            if group.together is not None and experts.deltas is not None:
                if group.together is not done:
                    add_together(y, x, experts.deltas, group.together)
                done = group.together
            elif (span := group.span) is not None:
                add_routed(y[span], x[span], experts, None, group.task, group.mixture)
            else:
                add_routed(y, x, experts, group.rows, group.task, group.mixture)


class FusedProjection(WrappedProjection):
    """For a GPU: one kernel call a slice, whatever the tokens are. Nothing in Python depends on data."""

    def __init__(self, base: nn.Module, step: fused.FusedStep, slices: list[OutputSlice]) -> None:
        super().__init__(base, slices)
        self.step = step
        self.tables = [fused.SlotTables(step, part.size) for part in slices]

    def forward(self, x: Tensor) -> Any:
        result = self.base(x)
        output = result[0] if isinstance(result, tuple) else result
        for part, tables in zip(self.slices, self.tables, strict=True):
            fused.add_routed(output[:, part.start : part.start + part.size], x, self.step, tables)
        return result

    def put(self, slot: int, generation: ResidentGeneration | None) -> None:
        """Fill a slot with a generation's experts; None empties it."""
        for part, tables in zip(self.slices, self.tables, strict=True):
            blocks = None if generation is None else generation.projections.get((part.layer, part.target))
            assert blocks is None or isinstance(blocks, fused.RankBlocks)
            tables.put(slot, blocks)
