"""The routed update for a step whose tokens the router has grouped: a few whole-matrix products, nothing per token."""

from __future__ import annotations

from torch import Tensor

from seta_runtime.ops.experts import ProjectionExperts


def add_routed(
    y: Tensor, x: Tensor, experts: ProjectionExperts, rows: Tensor | None, task: int | None, gates: Tensor | None
) -> None:
    """`y[rows] += ((x[rows] Aᵀ) ⊙ gates[:, rank_expert]) B`, in place.

    y `[T, d_out]` (a view of the packed output is fine), x `[T, d_in]`; rows `[n]` int64, None for all; exactly one of
    `task` (that task's experts have gate 1, all others 0) and `gates [n, experts]` is given.
    """
    picked = x if rows is None else x.index_select(0, rows)
    update = _one_task(picked, experts, task) if task is not None else _gated(picked, experts, gates)
    if update is None:
        return
    if rows is None:
        y.add_(update)
    else:
        y.index_add_(0, rows, update)


def _one_task(x: Tensor, experts: ProjectionExperts, task: int) -> Tensor | None:
    delta = experts.task_delta[task]
    if delta is not None:
        return x @ delta
    rows = experts.task_rows[task]
    if not len(rows):
        return None
    if len(rows) == len(experts.a):
        return (x @ experts.a.T) @ experts.b
    return (x @ experts.a[rows].T) @ experts.b[rows]


def _gated(x: Tensor, experts: ProjectionExperts, gates: Tensor | None) -> Tensor:
    assert gates is not None
    shrunk = x @ experts.a.T
    return (shrunk * gates.to(x.dtype)[:, experts.rank_expert]) @ experts.b
