"""One projection's experts in memory, in the forms that the operations read.

For the compiled product that is `paired.PairedExperts`; here is what torch reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seta_runtime.ops.blocks import SparseBlocks, StackedBlocks
from seta_runtime.ops.paired import PairedBlocks, PairedExperts, can_pair, pair

Blocks = SparseBlocks | PairedBlocks
"""One expert's, on one projection."""

DENSE_RATIO_LIMIT = 4.0
DENSE_VALUES_LIMIT = 1 << 19
"""A task's merged delta is kept dense while it takes at most so many times the memory of its sub-blocks, and on small
projections only: there one product of any size costs a call, on large ones the bytes decide (`docs/performance.md`)."""


@dataclass(frozen=True)
class TaskBlocks:
    """One task's blocks in one stack: `index [k]`, None for all of the stack's."""

    stack: StackedBlocks
    index: Tensor | None


@dataclass(frozen=True)
class ProjectionExperts:
    """All experts of one generation on one projection `W0 [d_out, d_in]`.

    `task_delta[t] [d_out, d_in]`: the merged delta of task t's experts, for `x @ delta.T`, where that is the cheaper
    form, else None; then `task_blocks[t]` holds their sub-blocks. `deltas [tasks, d_out, d_in]`: the same deltas in one
    piece, where every task has one. `stacks`: the sub-blocks by rank, of all experts if there may be mixtures of them,
    else of those that some task reads in that form.
    """

    stacks: list[StackedBlocks]
    deltas: Tensor | None
    task_delta: list[Tensor | None]
    task_blocks: list[list[TaskBlocks]]

    @property
    def nbytes(self) -> int:
        deltas = sum(delta.nbytes for delta in self.task_delta if delta is not None)
        chosen = sum(t.index.nbytes for mine in self.task_blocks for t in mine if t.index is not None)
        return deltas + chosen + sum(stack.nbytes for stack in self.stacks)


def prepared(mine: SparseBlocks, dtype: torch.dtype, device: torch.device, with_mixtures: bool) -> Blocks:
    """One expert's blocks on a projection, in the form that is multiplied the fastest here.

    Without mixtures (top-1 routing) a task is all that a step reads.
    """
    is_fast = not with_mixtures and device.type == "cpu" and can_pair(mine, dtype)
    return PairedBlocks.of(mine) if is_fast else mine


def pack(
    experts: Sequence[Blocks | None],
    members: Sequence[Sequence[int]],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    with_mixtures: bool = True,
) -> ProjectionExperts | PairedExperts:
    """The experts of one projection, each as `prepared` gave it; `experts[e]` is None where e has no block.

    `members[t]`: task t's experts.
    """
    present = {index: expert for index, expert in enumerate(experts) if expert is not None}
    members = [[e for e in mine if e in present] for mine in members]
    paired = [(index, expert) for index, expert in present.items() if isinstance(expert, PairedBlocks)]
    if paired and len(paired) == len(present):
        return pair(paired, members)
    sparse = {index: expert.sparse() for index, expert in present.items()}
    return _pack_for_torch(sparse, members, shape, dtype, device, with_mixtures)


def _pack_for_torch(
    present: dict[int, SparseBlocks],
    members: Sequence[Sequence[int]],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    with_mixtures: bool,
) -> ProjectionExperts:
    deltas = [_merged([present[e] for e in mine], shape) for mine in members]
    in_blocks = {e for mine, delta in zip(members, deltas, strict=True) if delta is None for e in mine}
    kept = set(present) if with_mixtures else in_blocks
    ranks = sorted({present[e].a.shape[1] for e in kept})
    stacks = [
        StackedBlocks.stack([(e, present[e]) for e in sorted(kept) if present[e].a.shape[1] == rank], dtype, device)
        for rank in ranks
    ]
    task_delta = [None if d is None else d.to(device, dtype) for d in deltas]
    together = _in_one_piece(task_delta)
    return ProjectionExperts(
        stacks=stacks,
        deltas=together,
        task_delta=task_delta if together is None else list(together),
        task_blocks=_blocks_of([mine if d is None else [] for mine, d in zip(members, deltas, strict=True)], stacks),
    )


def members_of(membership: Tensor) -> list[list[int]]:
    """Each task's experts, of `membership [tasks, experts]` of 0 and 1."""
    found: list[list[int]] = [[] for _ in membership]
    for task, expert in membership.nonzero().tolist():
        found[task].append(expert)
    return found


def _blocks_of(members: Sequence[Sequence[int]], stacks: Sequence[StackedBlocks]) -> list[list[TaskBlocks]]:
    """For each task, where its experts' blocks are in the stacks."""
    found: list[list[TaskBlocks]] = [[] for _ in members]
    for stack in stacks:
        spans = stack.spans()
        for task, mine in enumerate(members):
            index = [i for expert in mine for i in spans.get(expert, ())]
            if index:
                is_all = len(index) == len(stack.expert)
                found[task].append(TaskBlocks(stack, None if is_all else torch.tensor(index, device=stack.a.device)))
    return found


def _in_one_piece(deltas: Sequence[Tensor | None]) -> Tensor | None:
    present = [delta for delta in deltas if delta is not None]
    return torch.stack(present) if present and len(present) == len(deltas) else None


def _merged(mine: Sequence[SparseBlocks], shape: tuple[int, int]) -> Tensor | None:
    values = shape[0] * shape[1]
    if not mine or values > min(DENSE_VALUES_LIMIT, DENSE_RATIO_LIMIT * sum(expert.num_values for expert in mine)):
        return None
    return torch.stack([expert.dense(shape) for expert in mine]).sum(0)
