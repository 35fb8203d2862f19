"""Which task led where each request's answer begins, kept until somebody asks: `/metrics` times requests by task.

The gate's decision at the prompt's last token is the one the answer's first token comes from. A step in which no prompt
ends, as nearly all are, costs a look at three arrays; one in which some end keeps their tasks, a few bytes a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seta_runtime.decisions import index_of
from seta_runtime.resident import ResidentGeneration

MAX_KEPT = 1 << 14
"""Requests kept while nobody asks; the oldest give way."""

_BASE = -1


class LeadingTasks:
    """`ended` gives, for the step being computed, the requests whose prompt ends in it: id and that token's row."""

    def __init__(self) -> None:
        self.ended: Callable[[], list[tuple[str, int]]] = list
        self._kept: deque[tuple[tuple[str, ...], list[str], Tensor]] = deque()
        self._num_kept = 0

    def note(self, generation: ResidentGeneration, rows: Tensor | None, weights: Tensor) -> None:
        """One generation's decisions in this step: weights `[n, columns]` of the batch's `rows [n]`, ascending.

        rows None: all of the batch.
        """
        mine = [(request_id, index_of(rows, row)) for request_id, row in self.ended()]
        found = {request_id: index for request_id, index in mine if index is not None}
        if not found:
            return
        chosen = weights[torch.tensor(list(found.values()), device=weights.device)]
        tasks = torch.where(chosen.any(-1), generation.leading_tasks(chosen), _BASE)
        self._kept.append((generation.tasks, list(found), tasks))
        self._num_kept += len(found)
        while self._num_kept > MAX_KEPT:
            self._num_kept -= len(self._kept.popleft()[1])

    def take(self) -> list[tuple[str, str | None]]:
        """(request, leading task), None for base, of all that are kept; they are forgotten then."""
        kept, self._kept, self._num_kept = self._kept, deque(), 0
        return [
            (request_id, None if task == _BASE else names[task])
            for names, ids, tasks in kept
            for request_id, task in zip(ids, tasks.tolist(), strict=True)
        ]


def prompts_that_end(ids: list[str], starts: Any, num_computed: Any, num_prompt: Any) -> list[tuple[str, int]]:
    """The requests of a batch whose prompt ends in this step, with the row of its last token.

    starts `[R + 1]`: each request's first row; num_computed `[R]`: its tokens before this step; num_prompt `[R]`.
    """
    last = num_prompt - 1 - num_computed
    ends = (last >= 0) & (last < starts[1:] - starts[:-1])
    return [(ids[index], int(starts[index] + last[index])) for index in ends.nonzero()[0]]
