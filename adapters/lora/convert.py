"""A LoRA's rank rows as an expert's sub-blocks, and an expert's sub-blocks as the smallest exact LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.blocks import Site
from adapters.lora.files import LoraDelta
from adapters.sparse_lora import SparseDelta

NUMERIC_RANK_TOLERANCE = 64
"""A singular value counts as zero below this many float64 roundings of the largest."""


def to_blocks(delta: LoraDelta, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """ΔW cut into sub-blocks, without those that are zero: `blocks [n, 2]`, `A [n, r, l]`, `B [n, l, r]`; `l = size`.

    Each sub-block takes the rank rows' own columns and rows, so its rank is the LoRA's; a LoRA of a rank above `size`
    gives its sub-blocks multiplied out, with rank `size`. The scale goes into B.
    """
    a = delta.a.view(len(delta.a), -1, size).transpose(0, 1)  # [columns, r, l]
    b = (delta.b * delta.scale).view(-1, size, delta.b.shape[1])  # [rows, l, r]
    is_used = b.flatten(1).any(1)[:, None] & a.flatten(1).any(1)[None, :]
    blocks = is_used.nonzero()
    a, b = a[blocks[:, 1]], b[blocks[:, 0]]
    if a.shape[1] > size:
        b = torch.bmm(b.double(), a.double()).float()
        a = torch.eye(size).expand(len(blocks), size, size)
    return blocks.to(torch.int32), a.contiguous(), b.contiguous()


def to_expert(deltas: Mapping[Site, LoraDelta], size: int) -> dict[Site, SparseDelta]:
    """An expert with the same ΔW on every projection; ranks below the highest are filled up with zeros."""
    cut = {site: to_blocks(delta, size) for site, delta in sorted(deltas.items())}
    rank = max(a.shape[1] for _, a, _ in cut.values())
    expert: dict[Site, SparseDelta] = {}
    for site, (blocks, a, b) in cut.items():
        missing = rank - a.shape[1]
        padded = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
        shape = (len(deltas[site].b), deltas[site].a.shape[1])
        expert[site] = SparseDelta(blocks, *padded, shape)
    return expert


def block_values(deltas: Mapping[Site, LoraDelta], size: int) -> int:
    """At most how many values `to_expert` makes of a LoRA, before any is made."""
    rank = max(min(len(delta.a), size) for delta in deltas.values())
    grids = [(len(delta.b) // size) * (delta.a.shape[1] // size) for delta in deltas.values()]
    return sum(grids) * 2 * rank * size


def to_lora(parts: Sequence[SparseDelta]) -> LoraDelta | None:
    """The LoRA of the smallest rank whose product is the sum of the experts' ΔW, to float32's precision; None for zero.

    Either whole rows or columns of ΔW (with ones in the other factor: the sparse form), or, where its true rank is
    lower, its singular vectors.
    """
    dense = torch.stack([_dense(part) for part in parts]).sum(0)
    rows, columns = dense.any(1).nonzero().flatten(), dense.any(0).nonzero().flatten()
    if not len(rows):
        return None
    u, values, vt = torch.linalg.svd(dense[rows][:, columns], full_matrices=False)
    tolerance = NUMERIC_RANK_TOLERANCE * torch.finfo(torch.float64).eps * values[0]
    rank = int((values > tolerance).sum())
    if rank < min(len(rows), len(columns)):
        root = values[:rank].sqrt()
        a = torch.zeros(rank, dense.shape[1], dtype=torch.float64)
        b = torch.zeros(dense.shape[0], rank, dtype=torch.float64)
        a[:, columns], b[rows] = root[:, None] * vt[:rank], u[:, :rank] * root
    elif len(rows) <= len(columns):
        a, b = dense[rows], torch.eye(dense.shape[0], dtype=torch.float64)[:, rows]
    else:
        a, b = torch.eye(dense.shape[1], dtype=torch.float64)[columns], dense[:, columns]
    return LoraDelta(a.float(), b.float())


def _dense(part: SparseDelta) -> Tensor:
    """ΔW `[d_out, d_in]` in float64, where the products of the stored values are exact."""
    doubled = SparseDelta(part.blocks, part.a.detach().double(), part.b.detach().double(), part.shape)
    return doubled.dense().detach()
