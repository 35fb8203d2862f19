"""Where trunk outputs are kept while a task is learned: in memory up to a limit, in a temporary file past it.

The file has no name: it is unlinked as soon as it is made, so the system frees it when the process ends, however it
ends. It is read and written, not mapped, so what is on disk does not count as the process's memory. It lies where
Python puts temporary files: set TMPDIR to choose another disk.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, overload

import torch
from torch import Tensor

DEFAULT_LIMIT_BYTES = 2 << 30


class TrunkCacheError(Exception):
    """The trunk's outputs fit neither into the memory allowed nor on the disk."""


class TrunkMemory:
    """How many bytes of trunk outputs may be in memory, over all the caches that share it."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, num_bytes: int) -> bool:
        """Whether there is room for that many more; if so they are taken."""
        fits = self.used_bytes + num_bytes <= self.limit_bytes
        self.used_bytes += num_bytes if fits else 0
        return fits

    def give_back(self, num_bytes: int) -> None:
        self.used_bytes -= num_bytes


class TrunkCache(Sequence[Tensor]):
    """A tensor `[T_i, width]` of one dtype for each of `lengths`, to be put once and read often.

    Reading one from disk gives a new tensor; one in memory is the cache's own: callers change neither. What a cache
    holds is freed when it is no longer referenced.
    """

    def __init__(self, lengths: Sequence[int], width: int, dtype: torch.dtype, memory: TrunkMemory) -> None:
        """Raises TrunkCacheError where the disk has no room for what is past the memory's limit."""
        self.lengths = list(lengths)
        self.width, self.dtype = width, dtype
        self._kept: dict[int, Tensor] = {}
        self._offsets: dict[int, int] = {}
        self.memory_bytes = self.disk_bytes = 0
        for index, length in enumerate(self.lengths):
            num_bytes = length * width * dtype.itemsize
            if memory.take(num_bytes):
                self.memory_bytes += num_bytes
            else:
                self._offsets[index] = self.disk_bytes
                self.disk_bytes += num_bytes
        weakref.finalize(self, memory.give_back, self.memory_bytes)
        self._file = _nameless_file(self.disk_bytes) if self._offsets else None

    def put(self, index: int, output: Tensor) -> None:
        """Keep a copy of `output [T_i, width]`."""
        assert output.shape == (self.lengths[index], self.width) and output.dtype == self.dtype
        if index not in self._offsets:
            self._kept[index] = output.clone()
            return
        assert self._file is not None
        _write(self._file, self._offsets[index], output.contiguous().view(torch.uint8).numpy().tobytes())

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._offsets:
            return self._kept[index]
        assert self._file is not None
        data = bytearray(self.lengths[index] * self.width * self.dtype.itemsize)
        _read_into(self._file, self._offsets[index], data)
        return torch.frombuffer(data, dtype=self.dtype).view(-1, self.width)


def _nameless_file(num_bytes: int) -> IO[bytes]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="seta-trunk-", buffering=0))
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise TrunkCacheError(
                f"{num_bytes / 2**30:.2f} GiB of trunk outputs are past the memory allowed for them and do not fit "
                f"into {tempfile.gettempdir()} ({error.strerror}); free some space, set TMPDIR to a directory on "
                "another disk, or allow more memory (cache_mib)"
            ) from error
        stack.pop_all()  # it stays open as long as the cache
        return file


def _write(file: IO[bytes], offset: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def _read_into(file: IO[bytes], offset: int, data: bytearray) -> None:
    rest = memoryview(data)
    while rest:
        count = os.preadv(file.fileno(), [rest], offset)
        if not count:
            raise TrunkCacheError(f"the temporary file of trunk outputs ends at byte {offset}; start again")
        rest, offset = rest[count:], offset + count
