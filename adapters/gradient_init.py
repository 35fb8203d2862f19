"""Where a sub-block's rank rows start: the principal directions of the task's own gradient there.

The warm-up (eq. 2) has computed the full gradient `G_b [l, l]` of every block anyway. With `ΔW_b = B_b A_b` and B = 0
the first step moves B along `G_b A_bᵀ`, so A's rows say which part of the gradient can be followed at all. Its r first
right singular vectors are the rows that keep most of it: half the values then learn as much (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.blocks import Site
from adapters.parallel import ALONE, Processes
from adapters.sparse_lora import SparseDelta


@torch.no_grad()
def start_along(
    expert: Mapping[Site, SparseDelta], gradients: Mapping[Site, Tensor], processes: Processes = ALONE
) -> None:
    """Replace the rows of A by principal directions; `gradients[site] [d_out, d_in]`, sites without one stay.

    Rows past the block's edge, and blocks without a gradient, keep what they have. Every process gets the first one's.
    """
    for site, gradient in gradients.items():
        if site in expert:
            delta = expert[site]
            found = principal_rows(cut(gradient, delta.blocks, delta.a.shape[-1]), delta.rank)
            delta.a[:, : found.shape[1]] = torch.where(found.isnan(), delta.a[:, : found.shape[1]], found)
    if gradients:  # random rows are the same everywhere: they have a seed
        processes.take_first([delta.a for delta in expert.values()])


def principal_rows(gradients: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of each `[n, l, l]`, as rows of length 1: `[n, min(rank, l), l]`.

    NaN for a matrix that has none: all zeros, or not finite.
    """
    scale = gradients.abs().amax((1, 2), keepdim=True)
    is_usable = (scale > 0) & scale.isfinite()
    squares = torch.where(is_usable, gradients / scale, 0).double()
    directions = torch.linalg.eigh(squares.transpose(1, 2) @ squares).eigenvectors  # columns, smallest value first
    rows = directions.flip(-1).transpose(1, 2)[:, :rank].float()
    return torch.where(is_usable, rows, torch.nan)


def cut(matrix: Tensor, blocks: Tensor, size: int) -> Tensor:
    """The sub-blocks `blocks [n, 2]` (row, column) of `[d_out, d_in]`: `[n, l, l]` float32."""
    rows, columns = matrix.shape[0] // size, matrix.shape[1] // size
    grid = matrix.reshape(rows, size, columns, size).permute(0, 2, 1, 3)
    return grid[blocks[:, 0].long(), blocks[:, 1].long()].float()
