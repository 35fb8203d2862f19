"""What the router writes once per forward pass and every routed layer reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from seta_runtime.ops.cpu import Mixture, Together
from seta_runtime.ops.fused import FusedStep
from seta_runtime.ops.task_rows import TaskRows, neighbours
from seta_runtime.resident import ResidentGeneration


@dataclass(frozen=True)
class RoutedGroup:
    """Tokens that share a generation and a set of active tasks.

    `rows [n]` int64, ascending, are their positions in the step's batch, None when they are all of it. `task` is set
    when one task has the whole weight (top-1 routing), and then `mixture` is None; otherwise `mixture` holds every
    expert's gate. `together` is the same one in all groups of a generation whose tokens are few: it stands for all of
    them where a projection has its tasks' deltas in one piece. `by_task`, too, is the same one in all of a generation's
    groups, and stands for them where a projection is multiplied by the compiled product.
    """

    generation: ResidentGeneration
    rows: Tensor | None
    task: int | None
    mixture: Mixture | None
    together: Together | None = None
    by_task: TaskRows | None = None

    @cached_property
    def span(self) -> slice | None:
        """The rows as a slice where they lie side by side: nothing needs picking or adding back."""
        found = None if self.rows is None else neighbours(self.rows)
        return None if found is None else slice(found.start, found.stop)


@dataclass
class StepState:
    """Which slot each token of the step belongs to, and the groups the router made of them.

    `token_slots [T]` int64: the index of the token's generation in `slots`, -1 for the base model. Groups are empty
    below the trunk's end and in a step in which no expert is active: the routed layers then return the base output
    untouched. On a GPU the router leaves its decisions in `fused` instead, and there are no groups.
    """

    slots: list[ResidentGeneration | None]
    token_slots: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    groups: list[RoutedGroup] = field(default_factory=list)
    fused: FusedStep | None = None

    def begin_step(self, token_slots: Tensor) -> None:
        self.token_slots = token_slots
        self.groups = []

    def slot_of(self, generation: ResidentGeneration) -> int:
        return next(slot for slot, held in enumerate(self.slots) if held is generation)

    def slots_of(self, num_tokens: int) -> Tensor:
        """The step's slots, -1 for tokens that pad the batch."""
        known = self.token_slots[:num_tokens]
        if len(known) == num_tokens:
            return known
        return torch.nn.functional.pad(known, (0, num_tokens - len(known)), value=-1)
