"""A step's tokens by task, as the compiled product (`sub_blocks.c`) takes them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


class _Group(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_void_p)] + [(name, ctypes.c_int64) for name in ("start", "count", "task")]  # noqa: RUF012


class TaskRows:
    """A generation's tokens of a step, by task. Made once a step and read by every projection."""

    def __init__(self, groups: Sequence[tuple[int, Tensor | range]]) -> None:
        """`groups`: a task and its tokens' rows, ascending `[n]` int64, or a range of neighbours."""
        self._kept = [rows for _, rows in groups]
        self._groups = (_Group * len(groups))(*(_group(task, rows) for task, rows in groups))
        self.address, self.count = ctypes.addressof(self._groups), len(groups)
        self.stop = max((int(rows[-1]) + 1 for _, rows in groups if len(rows)), default=0)
        self.last_task = max((task for task, _ in groups), default=-1)

    @classmethod
    def of(cls, groups: Sequence[tuple[int, Tensor | None]], num_tokens: int) -> TaskRows:
        """None for all of the step's tokens."""
        return cls([(task, range(num_tokens) if rows is None else neighbours(rows) or rows) for task, rows in groups])


def neighbours(rows: Tensor) -> range | None:
    """Ascending rows `[n]` as a range if they lie side by side, as a prompt's do: then nothing needs picking."""
    if not len(rows):
        return None
    first, stop = int(rows[0]), int(rows[-1]) + 1
    return range(first, stop) if stop - first == len(rows) else None


def _group(task: int, rows: Tensor | range) -> _Group:
    if isinstance(rows, range):
        return _Group(None, rows.start, len(rows), task)
    assert rows.dtype == torch.int64 and rows.is_contiguous()
    return _Group(rows.data_ptr(), 0, len(rows), task)
