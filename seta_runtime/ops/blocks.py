"""Sub-blocks as they are multiplied: exactly the bank's values, no zero beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.delta_product import dense_delta


@dataclass(frozen=True)
class SparseBlocks:
    """An expert's sub-blocks on one projection: `blocks [n, 2]`, `a [n, r, l]`, `b [n, l, r]` (`docs/design.md`)."""

    blocks: Tensor
    a: Tensor
    b: Tensor

    @property
    def num_values(self) -> int:
        return self.a.numel() + self.b.numel()

    def sparse(self) -> SparseBlocks:
        """Itself; every form of blocks answers it."""
        return self

    def cut(self, rows: range, columns: range) -> SparseBlocks | None:
        """ΔW's part in those rows and columns, as sub-blocks of that smaller matrix; None if there are none.

        Where the cut would go through blocks, they are divided first: the same ΔW in smaller ones.
        """
        edge = math.gcd(self.a.shape[-1], rows.start, len(rows), columns.start, len(columns))
        fine = self._divided(edge)
        row, column = fine.blocks[:, 0] - rows.start // edge, fine.blocks[:, 1] - columns.start // edge
        is_inside = (row >= 0) & (row < len(rows) // edge) & (column >= 0) & (column < len(columns) // edge)
        if not is_inside.any():
            return None
        blocks = torch.stack([row, column], dim=1)[is_inside]
        return SparseBlocks(blocks, fine.a[is_inside], fine.b[is_inside])

    def _divided(self, edge: int) -> SparseBlocks:
        count, rank, size = self.a.shape
        each = size // edge
        if each == 1:
            return self
        place = torch.arange(each, dtype=self.blocks.dtype)
        row = (self.blocks[:, 0, None] * each + place)[:, :, None].expand(-1, -1, each)
        column = (self.blocks[:, 1, None] * each + place)[:, None, :].expand(-1, each, -1)
        a = self.a.reshape(count, rank, each, edge).permute(0, 2, 1, 3)[:, None].expand(-1, each, -1, -1, -1)
        b = self.b.reshape(count, each, edge, rank)[:, :, None].expand(-1, -1, each, -1, -1)
        blocks = torch.stack([row.flatten(), column.flatten()], dim=1)
        return SparseBlocks(blocks, a.reshape(-1, rank, edge), b.reshape(-1, edge, rank))

    def dense(self, shape: tuple[int, int]) -> Tensor:
        """ΔW `[d_out, d_in]` float32."""
        return dense_delta(self.blocks.long(), torch.bmm(self.b.float(), self.a.float()), shape)


@dataclass(frozen=True)
class StackedBlocks:
    """Sub-blocks of one rank, of several experts: `a [n, l, r]`, `b [n, r, l]`, ready to be multiplied from the left.

    `row`, `column`, `expert`, each `[n]` int64: where a block lies in the grid of W0's blocks, and whose it is.
    """

    row: Tensor
    column: Tensor
    expert: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    def stack(
        cls, experts: Sequence[tuple[int, SparseBlocks]], dtype: torch.dtype, device: torch.device
    ) -> StackedBlocks:
        """`experts`: at least one, by index."""
        position = torch.cat([mine.blocks for _, mine in experts]).long()
        counts = torch.tensor([len(mine.blocks) for _, mine in experts])
        expert = torch.tensor([index for index, _ in experts]).repeat_interleave(counts)
        a = torch.cat([mine.a.transpose(1, 2) for _, mine in experts])
        b = torch.cat([mine.b.transpose(1, 2) for _, mine in experts])
        return cls(
            position[:, 0].contiguous().to(device),
            position[:, 1].contiguous().to(device),
            expert.to(device),
            a.to(device, dtype).contiguous(),
            b.to(device, dtype).contiguous(),
        )

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.row, self.column, self.expert, self.a, self.b))

    def spans(self) -> dict[int, range]:
        """Each expert's blocks: they lie together."""
        experts, counts = torch.unique_consecutive(self.expert, return_counts=True)
        stops = counts.cumsum(0).tolist()
        return {e: range(stop - n, stop) for e, n, stop in zip(experts.tolist(), counts.tolist(), stops, strict=True)}

    def of(self, experts: Tensor) -> Tensor | None:
        """Indices of the blocks of those `experts [k]`; None when they are all of the blocks."""
        mine = torch.isin(self.expert, experts)
        return None if bool(mine.all()) else mine.nonzero().flatten()

    def update(self, x: Tensor, num_outputs: int, index: Tensor | None, gates: Tensor | None) -> Tensor:
        """`sum over blocks of (x[:, column] a ⊙ gate) b` at their rows: x `[T, d_in]` → `[T, num_outputs]` float32.

        `index`: only these blocks. `gates [T, experts]`: what each block's part is weighted with, 1 without.
        """
        row, column, expert, a, b = self._picked(index)
        size = a.shape[1]
        columns = x.view(len(x), x.shape[1] // size, size).transpose(0, 1)  # [d_in / l, T, l]
        shrunk = torch.bmm(columns.index_select(0, column), a)
        if gates is not None:
            shrunk = shrunk * gates[:, expert].T.to(x.dtype).unsqueeze(-1)
        out = torch.zeros(num_outputs // size, len(x), size)
        out.index_add_(0, row, torch.bmm(shrunk, b).float())  # float32: several blocks meet in a row
        return out.transpose(0, 1).reshape(len(x), num_outputs)

    def _picked(self, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        parts = (self.row, self.column, self.expert, self.a, self.b)
        return parts if index is None else tuple(part.index_select(0, index) for part in parts)  # type: ignore
