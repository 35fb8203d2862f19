"""ΔW of one task on one projection, ready to be multiplied: the whole matrix, or its sub-blocks where they are few.

Down_proj is where that counts: with an eighth of its blocks a training step would spend a third of its products on
zeros. Both forms are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

SPARSE_SHARE = 1 / 3
"""Up to this share of a projection's sub-blocks they are multiplied one by one; past it one large product is faster."""


class DeltaProduct(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """`x ΔWᵀ`: `[B, T, d_in]` → `[B, T, d_out]`, in x's dtype."""


@dataclass(frozen=True)
class DenseProduct:
    """`weight [d_out, d_in]`."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@dataclass(frozen=True)
class BlockProduct:
    """`products [n, l, l]` at the places `blocks [n, 2]` (row, column); `shape`: (d_out, d_in)."""

    products: Tensor
    blocks: Tensor
    shape: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        size = self.products.shape[-1]
        columns = x.reshape(-1, self.shape[1] // size, size).transpose(0, 1)  # [d_in / l, B T, l]
        parts = torch.bmm(columns.index_select(0, self.blocks[:, 1]), self.products.transpose(1, 2))
        sums = torch.zeros(self.shape[0] // size, parts.shape[1], size)
        sums = sums.index_add(0, self.blocks[:, 0], parts.float())  # float32: several blocks meet in a row
        return sums.transpose(0, 1).reshape(*x.shape[:-1], self.shape[0]).to(x.dtype)


def delta_product(
    blocks: Sequence[Tensor], products: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> DeltaProduct:
    """The sum of some experts' deltas, each `blocks [n, 2]` int64 and `products [n, l, l]`.

    An expert that is cut in two gives the same bits as before: blocks are added up in the order of their places.
    """
    place, value = torch.cat(list(blocks)), torch.cat(list(products))
    size = value.shape[-1]
    if value.numel() > SPARSE_SHARE * shape[0] * shape[1]:
        return DenseProduct(dense_delta(place, value, shape).to(dtype))
    order = (place[:, 0] * (shape[1] // size) + place[:, 1]).argsort(stable=True)
    return BlockProduct(value[order].to(dtype), place[order], shape)


def dense_delta(blocks: Tensor, products: Tensor, shape: tuple[int, int]) -> Tensor:
    """`products [n, l, l]` at their places `blocks [n, 2]`, zeros elsewhere: `[d_out, d_in]`."""
    size = products.shape[-1]
    rows, columns = shape[0] // size, shape[1] // size
    index = blocks[:, 0] * columns + blocks[:, 1]
    grid = torch.zeros(rows * columns, size, size, dtype=products.dtype).index_add(0, index, products)
    return grid.view(rows, columns, size, size).permute(0, 2, 1, 3).reshape(shape)
