"""One projection's experts in memory, in the forms that the operations read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DENSE_BYTES_LIMIT = 1.5
"""A task's merged delta is kept dense while it takes at most this many times the bytes of its sub-blocks."""


@dataclass(frozen=True)
class SparseBlocks:
    """An expert's sub-blocks on one projection: `blocks [n, 2]`, `a [n, r, l]`, `b [n, l, r]` (`docs/design.md`)."""

    blocks: Tensor
    a: Tensor
    b: Tensor

    def dense(self, shape: tuple[int, int]) -> Tensor:
        """ΔW `[d_out, d_in]` float32."""
        size = self.a.shape[-1]
        rows, columns = shape[0] // size, shape[1] // size
        grid = torch.zeros(rows * columns, size, size)
        index = self.blocks[:, 0].long() * columns + self.blocks[:, 1].long()
        grid.index_copy_(0, index, torch.bmm(self.b.float(), self.a.float()))
        return grid.view(rows, columns, size, size).permute(0, 2, 1, 3).reshape(shape)

    def rank_rows(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The same delta as rank rows of the whole matrix: `A [n·r, d_in]`, `B [n·r, d_out]`, zero off the blocks."""
        count, rank, size = self.a.shape
        a = torch.zeros(count, rank, shape[1])
        b = torch.zeros(count, rank, shape[0])
        for i, (row, column) in enumerate(self.blocks.tolist()):
            a[i, :, column * size : (column + 1) * size] = self.a[i]
            b[i, :, row * size : (row + 1) * size] = self.b[i].T
        return a.flatten(0, 1), b.flatten(0, 1)


@dataclass(frozen=True)
class ProjectionExperts:
    """All experts of one generation on one projection `W0 [d_out, d_in]`.

    `a [R, d_in]`, `b [R, d_out]`: every expert's rank rows, stacked; `rank_expert [R]` int64 names each row's expert.
    `task_rows[t]`: the rows that task t's experts own. `task_delta[t] [d_in, d_out]`: their merged delta, ready for
    `x @ delta`, where that is the cheaper form, else None.
    """

    a: Tensor
    b: Tensor
    rank_expert: Tensor
    task_rows: list[Tensor]
    task_delta: list[Tensor | None]

    @property
    def nbytes(self) -> int:
        tensors = [self.a, self.b, *self.task_rows, *(d for d in self.task_delta if d is not None)]
        return sum(t.nbytes for t in tensors)


def pack(
    experts: Sequence[SparseBlocks | None],
    members: Sequence[Sequence[int]],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    with_mixtures: bool = True,
) -> ProjectionExperts:
    """Stack the experts of one projection; `experts[e]` is None where expert e has no block here.

    `members[t]`: task t's experts. Without mixtures (top-1 routing) a task's merged delta is all that a step reads,
    so where every task has one the rank rows are left out: they would cost several times the bank's bytes.
    """
    members = [[e for e in mine if experts[e] is not None] for mine in members]
    task_delta = [_merged([e for i in mine if (e := experts[i]) is not None], shape) for mine in members]
    is_merged_enough = all(delta is not None or not mine for delta, mine in zip(task_delta, members, strict=True))
    stacked = [] if is_merged_enough and not with_mixtures else [(i, e) for i, e in enumerate(experts) if e is not None]
    rows = [(index, *expert.rank_rows(shape)) for index, expert in stacked]
    counts = torch.tensor([len(a) for _, a, _ in rows], dtype=torch.int64)
    rank_expert = torch.tensor([index for index, _, _ in rows], dtype=torch.int64).repeat_interleave(counts)
    stops = counts.cumsum(0).tolist()
    rows_of = {index: torch.arange(stop - len(a), stop) for (index, a, _), stop in zip(rows, stops, strict=True)}
    nothing = torch.zeros(0, dtype=torch.int64)
    return ProjectionExperts(
        a=torch.cat([a for _, a, _ in rows] or [torch.zeros(0, shape[1])]).to(device, dtype),
        b=torch.cat([b for _, _, b in rows] or [torch.zeros(0, shape[0])]).to(device, dtype),
        rank_expert=rank_expert.to(device),
        task_rows=[torch.cat([nothing, *(rows_of[e] for e in mine if e in rows_of)]).to(device) for mine in members],
        task_delta=[None if d is None else d.T.contiguous().to(device, dtype) for d in task_delta],
    )


def members_of(membership: Tensor) -> list[list[int]]:
    """Each task's experts, of `membership [tasks, experts]` of 0 and 1."""
    found: list[list[int]] = [[] for _ in membership]
    for task, expert in membership.nonzero().tolist():
        found[task].append(expert)
    return found


def _merged(mine: Sequence[SparseBlocks], shape: tuple[int, int]) -> Tensor | None:
    block_values = sum(expert.a.numel() + expert.b.numel() for expert in mine)
    if not mine or shape[0] * shape[1] > DENSE_BYTES_LIMIT * block_values:
        return None
    return torch.stack([expert.dense(shape) for expert in mine]).sum(0)
