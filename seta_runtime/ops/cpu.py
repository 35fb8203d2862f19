"""The routed update by torch, for a step whose tokens the router has grouped: a few products, nothing per token.

Where the compiled product is there (`paired.py`), it takes the place of all but the mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seta_runtime.ops.experts import ProjectionExperts


@dataclass(frozen=True)
class Mixture:
    """Gates `[n, experts]` float32 of n tokens; `active [k]` int64: the experts that some of them has a gate for.

    Made once a step and read by every layer.
    """

    gates: Tensor
    active: Tensor

    @classmethod
    def of(cls, gates: Tensor) -> Mixture:
        return cls(gates, gates.any(0).nonzero().flatten())


TOGETHER_TOKENS = 64
TOGETHER_TASKS = 8
"""So few tokens of so few neighbouring tasks are multiplied with all their deltas in one call: products that nobody
needs cost less than a product, a gather and a scatter for each task (`docs/performance.md`)."""


@dataclass(frozen=True)
class Together:
    """A generation's routed tokens of a step, few, of several tasks with one weight each: their updates at once.

    `rows [n]` int64, None for all of the step's. `tasks`: neighbours among which all of theirs are. `pick [n]` int64:
    token i's row of its own task when each token has a row for every one of `tasks`.
    """

    rows: Tensor | None
    tasks: range
    pick: Tensor

    @classmethod
    def of(cls, rows: Tensor | None, task_of: Tensor) -> Together | None:
        """`task_of [n]`: each row's task. None where task by task is cheaper."""
        found = set(task_of.tolist()) if len(task_of) <= TOGETHER_TOKENS else set()
        if len(found) < 2:
            return None
        tasks = range(min(found), max(found) + 1)
        if len(tasks) > min(TOGETHER_TASKS, 2 * len(found)):
            return None
        return cls(rows, tasks, torch.arange(len(task_of)) * len(tasks) + task_of - tasks.start)


def add_together(y: Tensor, x: Tensor, deltas: Tensor, group: Together) -> None:
    """`y[rows[i]] += x[rows[i]] deltas[task of i]ᵀ`, in place; deltas `[all tasks, d_out, d_in]`."""
    picked = x if group.rows is None else x.index_select(0, group.rows)
    theirs = deltas[group.tasks.start : group.tasks.stop]
    products = (picked @ theirs.flatten(0, 1).T).view(-1, deltas.shape[1])  # [n * tasks, d_out]
    update = products.index_select(0, group.pick)
    if group.rows is None:
        y.add_(update)
    else:
        y.index_add_(0, group.rows, update)


def add_routed(
    y: Tensor, x: Tensor, experts: ProjectionExperts, rows: Tensor | None, task: int | None, mixture: Mixture | None
) -> None:
    """`y[rows] += sum over experts of gates[:, e] ⊙ (x[rows] ΔW_eᵀ)`, in place.

    y `[T, d_out]` (a view of the packed output is fine), x `[T, d_in]`; rows `[n]` int64, None for all; exactly one of
    `task` (that task's experts have gate 1, all others 0) and `mixture`, with gates for each row, is given.
    """
    picked = x if rows is None else x.index_select(0, rows)
    delta = None if task is None else experts.task_delta[task]
    if delta is not None:
        _add_dense(y, picked, delta, rows)
        return
    for update in _updates(picked, y.shape[1], experts, task, mixture):
        if rows is None:
            y.add_(update)
        else:
            y.index_add_(0, rows, update.to(y.dtype))


def _add_dense(y: Tensor, x: Tensor, delta: Tensor, rows: Tensor | None) -> None:
    """`y[rows] += x deltaᵀ`. For one token oneDNN's call costs more than the product, so torch's own kernel does it."""
    mkldnn: Any = torch.backends.mkldnn
    was_enabled = mkldnn.enabled
    mkldnn.enabled = was_enabled and len(x) > 1
    try:
        if rows is None:
            y.addmm_(x, delta.T)
        else:
            y.index_add_(0, rows, x @ delta.T)
    finally:
        mkldnn.enabled = was_enabled


def _updates(
    x: Tensor, num_outputs: int, experts: ProjectionExperts, task: int | None, mixture: Mixture | None
) -> list[Tensor]:
    if task is not None:
        return [blocks.stack.update(x, num_outputs, blocks.index, None) for blocks in experts.task_blocks[task]]
    assert mixture is not None
    return _gated(x, num_outputs, experts, mixture)


def _gated(x: Tensor, num_outputs: int, experts: ProjectionExperts, mixture: Mixture) -> list[Tensor]:
    """Blocks of experts that no token of the step has a gate for are not read."""
    chosen = [(stack, stack.of(mixture.active)) for stack in experts.stacks]
    return [stack.update(x, num_outputs, i, mixture.gates) for stack, i in chosen if i is None or len(i)]
