"""One routing decision for the whole stack, taken at the entrance of decoder layer m.

1. Each token's evidence `z_t` is a fixed projection of the trunk's output (`adapters.gate`).
2. A prefix mean `z̄_t` of it is what causal attention with constant queries computes, so one extra attention layer pools
   it: the paged KV cache carries the gate's memory through chunked prefill, decode, preemption and prefix-cache hits.
3. The gate's read-out of `z̄_t` names the task, or "base"; tokens with the same answer form a group, and the routed
   layers do the rest.

Tokens of the base model, and of a generation without tasks, pay nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from seta_runtime.decisions import Decisions
from seta_runtime.leading import LeadingTasks
from seta_runtime.ops.cpu import Mixture, Together
from seta_runtime.ops.experts import ProjectionExperts
from seta_runtime.ops.paired import PairedExperts
from seta_runtime.ops.task_rows import TaskRows
from seta_runtime.ranks import ALONE, Ranks
from seta_runtime.resident import ResidentGeneration
from seta_runtime.state import RoutedGroup, StepState
from seta_runtime.stats import RoutingStats

COUNTED_IN_PYTHON = 256


@dataclass(frozen=True)
class PoolShape:
    """The extra attention layer's heads on this rank.

    Its value heads hold `num_kv_heads x head_size` evidence values a token.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def width(self) -> int:
        return self.num_kv_heads * self.head_size


class Router(nn.Module):
    """Writes `state.groups`, or on a GPU `state.fused`, from the residual stream at layer m."""

    def __init__(
        self,
        state: StepState,
        pool: Callable[[Tensor, Tensor, Tensor], Tensor],
        shape: PoolShape,
        stats: RoutingStats,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.state = state
        self.pool = pool
        self.shape = shape
        self.stats = stats
        self.ranks = ranks
        self.decisions = Decisions()
        self.leading = LeadingTasks()
        self.key = next(_keys)
        _routers[self.key] = self

    def forward(self, hidden: Tensor) -> None:
        """hidden `[T, d]`: the residual stream that enters layer m."""
        self.state.groups = []
        if self.state.fused is not None:
            self.state.fused.clear(len(hidden))
        slots = self.state.slots_of(len(hidden))
        members = self._members(slots)
        if not members:
            return
        pooled = self._pooled(hidden, members)
        for generation, rows in members:
            mine = pooled[:, : generation.gate.width]
            weights, probabilities = self._agreed(*generation.gate.judge(mine if rows is None else mine[rows]))
            self.stats.add(generation, weights, probabilities)
            self._add_groups(generation, rows, weights, hidden)
        if self.state.fused is not None:
            self.state.fused.finish(len(hidden))

    def _agreed(self, weights: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The first rank's decisions: equal sums may be rounded differently on ranks whose memory lies differently."""
        if self.ranks.is_alone:
            return weights, probabilities
        mine = torch.cat([weights, probabilities], dim=-1)
        first = self.ranks.gather(mine)[:, : mine.shape[-1]]
        return first[:, : weights.shape[-1]], first[:, weights.shape[-1] :]

    def _members(self, slots: Tensor) -> list[tuple[ResidentGeneration, Tensor | None]]:
        """The step's generations and their rows; one that knows no task has nothing to decide."""
        counts = counted(slots)
        members = []
        for slot in sorted(slot for slot in counts if slot >= 0):
            generation = self._resident(slot)
            rows = None if len(counts) == 1 else (slots == slot).nonzero().flatten()
            if generation.tasks:
                members.append((generation, rows))
            else:
                self.stats.add_base(generation, len(slots) if rows is None else len(rows))
        return members

    def _resident(self, slot: int) -> ResidentGeneration:
        generation = self.state.slots[slot]
        assert generation is not None, f"slot {slot} is empty"
        return generation

    def _pooled(self, hidden: Tensor, members: list[tuple[ResidentGeneration, Tensor | None]]) -> Tensor:
        """Prefix means of the evidence `[T, c]` float32: under constant queries a token's key is its log-weight."""
        num_tokens, shape = len(hidden), self.shape
        value = hidden.new_zeros(num_tokens, shape.width)
        key = hidden.new_zeros(num_tokens, shape.num_kv_heads, shape.head_size)
        query = hidden.new_zeros(num_tokens, shape.num_heads, shape.head_size)
        query[..., 0] = 1
        for generation, rows in members:
            z, log_weight = generation.gate.evidence(hidden if rows is None else hidden[rows])
            where: Any = slice(None) if rows is None else rows
            mine = z[:, self.ranks.rank * shape.width : (self.ranks.rank + 1) * shape.width]
            value[where, : mine.shape[-1]] = mine.to(value.dtype)
            key[where, :, 0] = log_weight.to(key.dtype).unsqueeze(-1)
        out = self.pool(query.flatten(1), key.flatten(1), value)
        per_head = out.view(num_tokens, shape.num_kv_heads, shape.num_heads // shape.num_kv_heads, shape.head_size)
        pooled = per_head[:, :, 0].flatten(1)
        return (pooled if self.ranks.is_alone else self.ranks.gather(pooled.contiguous())).float()

    def _add_groups(self, generation: ResidentGeneration, rows: Tensor | None, weights: Tensor, hidden: Tensor) -> None:
        """Group one generation's tokens by what they need; weights `[n, columns]`, a zero row means base."""
        if self.decisions.is_watching:
            self.decisions.note(generation, rows, weights)
        self.leading.note(generation, rows, weights)
        if self.state.fused is not None:
            self.state.fused.write(self.state.slot_of(generation), rows, generation.expert_gates(weights))
            return
        if generation.gate.is_mixture:
            self._add_mixture(generation, rows, weights)
            return
        chosen = torch.where(weights.any(-1), weights.argmax(-1), -1)
        counts = counted(chosen)
        groups: list[tuple[int, Tensor | None]] = []
        for task, count in sorted(counts.items()):
            if task < 0:
                continue
            everyone = rows is None and count == len(hidden)
            local = None if everyone else (chosen == task).nonzero().flatten()
            groups.append((task, local if rows is None or local is None else rows[local]))
        by_task = TaskRows.of(groups, len(hidden)) if PairedExperts in generation.forms else None
        can_gain = hidden.dtype == torch.bfloat16 and ProjectionExperts in generation.forms
        together = self._together(rows, chosen, counts) if can_gain else None
        self.state.groups += [RoutedGroup(generation, mine, task, None, together, by_task) for task, mine in groups]

    def _together(self, rows: Tensor | None, chosen: Tensor, counts: dict[int, int]) -> Together | None:
        """The rows that have a task, in one group; `chosen [n]`: each row's, -1 for the base model."""
        if -1 not in counts:
            return Together.of(rows, chosen)
        routed = (chosen >= 0).nonzero().flatten()
        return Together.of(routed if rows is None else rows[routed], chosen[routed])

    def _add_mixture(self, generation: ResidentGeneration, rows: Tensor | None, weights: Tensor) -> None:
        active = weights.any(-1)
        local = active.nonzero().flatten()
        if not len(local):
            return
        mixture = Mixture.of(generation.expert_gates(weights[local]))
        self.state.groups.append(RoutedGroup(generation, local if rows is None else rows[local], None, mixture))


def counted(values: Tensor) -> dict[int, int]:
    """How often each of `values [n]` int64 is there. A few are faster counted in Python than by a sort."""
    if len(values) <= COUNTED_IN_PYTHON:
        return Counter(values.tolist())
    found, counts = torch.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


class RoutedDecoderLayer(nn.Module):
    """Decoder layer m behind the router; called exactly as the layer it wraps."""

    def __init__(self, layer: nn.Module, router: Router) -> None:
        super().__init__()
        self.layer = layer
        self.router = router

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any) -> Any:
        stream = hidden_states if residual is None else hidden_states + residual
        step = self.router.state.fused
        if step is None:
            self.router(stream)
        else:
            torch.ops.seta.route(stream, step.gates, step.counts, step.columns, self.router.key)
        return self.layer(positions, hidden_states, residual, **kwargs)


_keys = itertools.count()
_routers: WeakValueDictionary[int, Router] = WeakValueDictionary()


def _route(hidden: Tensor, gates: Tensor, counts: Tensor, columns: Tensor, router: int) -> None:
    """A router as one opaque operation, so that tracing goes past it: graphs have to be split here, as at attention."""
    _routers[router](hidden)


torch.library.define(
    "seta::route", "(Tensor hidden, Tensor(a!) gates, Tensor(b!) counts, Tensor(c!) columns, int router) -> ()"
)
for _device in ("CUDA", "CPU"):
    torch.library.impl("seta::route", _device, _route)
torch.library.register_fake("seta::route", lambda *_: None)
