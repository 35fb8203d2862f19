"""The gate's decisions, kept for the requests that somebody wants explained.

The router sees rows of a batch and not requests; whoever runs it tells which rows belong to which request. What is kept
goes by the token's position in its sequence: a token that is run again after a preemption is not counted twice, and
one that the prefix cache held was not decided on at all. While no request is watched nothing is done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from seta_runtime.resident import ResidentGeneration

MAX_WATCHED = 1024
"""Requests watched at once; the oldest gives way. The server admits far fewer: this bounds what it might forget."""

Decision = list[tuple[int, float]]
"""(column, weight) of the gate's columns with a weight above zero, the heaviest first; none means base."""

_NOT_RUN, _NONE = -2, -1


@dataclass(frozen=True)
class RunningRequest:
    """A request in the running step: its rows in the batch and the position of the first of them in its sequence."""

    request_id: str
    rows: range
    position: int


class Record:
    """One request's decisions by position: k columns `[T, k]` int32 and their weights `[T, k]` float32."""

    def __init__(self, num_kept: int) -> None:
        self._columns = torch.full((0, num_kept), _NOT_RUN, dtype=torch.int32)
        self._weights = torch.zeros(0, num_kept)

    def put(self, position: int, weights: Tensor) -> None:
        """weights `[n, columns]` of the tokens from `position` on."""
        kept, columns = weights.topk(self._columns.shape[1], dim=-1)
        end = position + len(weights)
        self._grow(end)
        self._columns[position:end] = columns.to(torch.int32).masked_fill(kept <= 0, _NONE).cpu()
        self._weights[position:end] = kept.cpu()

    def between(self, first: int, stop: int) -> list[Decision | None]:
        """The decisions at positions `first...stop - 1`; None where none was taken."""
        columns, weights = self._columns[first:stop].tolist(), self._weights[first:stop].tolist()
        found = [_decision(*one) for one in zip(columns, weights, strict=True)]
        return found + [None] * (stop - first - len(found))

    def _grow(self, length: int) -> None:
        missing = length - len(self._columns)
        if missing <= 0:
            return
        more = max(missing, len(self._columns))  # doubling: an answer grows by a token a step
        self._columns = torch.nn.functional.pad(self._columns, (0, 0, 0, more), value=_NOT_RUN)
        self._weights = torch.nn.functional.pad(self._weights, (0, 0, 0, more))


class Decisions:
    """The records of the watched requests. `running` gives the requests of the step that is being computed."""

    def __init__(self) -> None:
        self.running: Callable[[], Iterable[RunningRequest]] = tuple
        self._records: OrderedDict[str, Record | None] = OrderedDict()

    @property
    def is_watching(self) -> bool:
        return bool(self._records)

    def watch(self, request_id: str) -> None:
        """Keep the decisions of a request that is about to be added."""
        self._records[request_id] = None
        while len(self._records) > MAX_WATCHED:
            self._records.popitem(last=False)

    def take(self, request_id: str, first: int, stop: int) -> list[Decision | None] | None:
        """A request's decisions at positions `first...stop - 1`; it is forgotten then. None if it is not watched."""
        if request_id not in self._records:
            return None
        record = self._records.pop(request_id)
        return [None] * (stop - first) if record is None else record.between(first, stop)

    def forget(self, request_id: str) -> None:
        self._records.pop(request_id, None)

    def note(self, generation: ResidentGeneration, rows: Tensor | None, weights: Tensor) -> None:
        """One generation's decisions in this step: weights `[n, columns]` of the batch's `rows [n]`, ascending.

        rows None: all of the batch.
        """
        for request in self.running():
            if request.request_id not in self._records:
                continue
            start = index_of(rows, request.rows.start)
            if start is None:
                continue
            record = self._records[request.request_id]
            if record is None:
                num_kept = min(generation.gate.top_k, weights.shape[-1])
                record = self._records[request.request_id] = Record(num_kept)
            record.put(request.position, weights[start : start + len(request.rows)])


def index_of(rows: Tensor | None, row: int) -> int | None:
    """Where a row of the batch stands among `rows`; None if it is another generation's, or the base model's."""
    if rows is None:
        return row
    index = int(torch.searchsorted(rows, row))
    return index if index < len(rows) and int(rows[index]) == row else None


def _decision(columns: list[int], weights: list[float]) -> Decision | None:
    if columns[0] == _NOT_RUN:
        return None
    return [(column, weight) for column, weight in zip(columns, weights, strict=True) if column != _NONE]
