"""Trunk outputs in memory up to a limit and on disk past it: the same values, bounded memory, nothing left behind."""

import errno
import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.trunk_cache import TrunkCache, TrunkCacheError, TrunkMemory

ROOT = Path(__file__).parents[2]
WIDTH = 3


def outputs(lengths: list[int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, WIDTH, generator=generator).to(dtype) for length in lengths]


def filled(found: list[Tensor], memory: TrunkMemory) -> TrunkCache:
    cache = TrunkCache([len(output) for output in found], WIDTH, found[0].dtype, memory)
    for index in reversed(range(len(found))):
        lent = found[index].clone()
        cache.put(index, lent)
        lent.zero_()  # a batch's memory is used again
    return cache


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    limit_bytes=st.integers(0, 400),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
@settings(deadline=None, max_examples=60)
def test_what_is_read_is_what_was_put_wherever_it_is(lengths: list[int], limit_bytes: int, dtype: torch.dtype) -> None:
    found, memory = outputs(lengths, dtype), TrunkMemory(limit_bytes)
    cache = filled(found, memory)
    assert cache.memory_bytes == memory.used_bytes <= limit_bytes
    assert cache.memory_bytes + cache.disk_bytes == sum(output.nbytes for output in found)
    assert len(cache) == len(found)
    for _ in range(2):
        for output, expected in zip(cache, found, strict=True):
            assert output.dtype == dtype and torch.equal(output, expected)
    assert torch.equal(cache[-1], found[-1])
    assert [len(output) for output in cache[1:3]] == lengths[1:3]
    with pytest.raises(IndexError):
        cache[len(found)]


def test_caches_share_a_limit_and_give_it_back() -> None:
    memory = TrunkMemory(limit_bytes=100)
    found = outputs([2, 2], torch.float32)
    first, second = filled(found, memory), filled(found, memory)
    assert (first.memory_bytes, second.memory_bytes, second.disk_bytes) == (48, 48, 0)
    third = filled(found, memory)
    assert (third.memory_bytes, third.disk_bytes) == (0, 48)
    del first
    gc.collect()
    assert memory.used_bytes == 48
    assert filled(found, memory).disk_bytes == 0


def test_a_file_has_no_name_and_is_closed_with_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = filled(outputs([4, 4], torch.float32), TrunkMemory(0))
    assert cache._file is not None and not list(tmp_path.iterdir())
    descriptor = cache._file.fileno()
    assert os.fstat(descriptor).st_size == cache.disk_bytes == 96
    del cache
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_disk_without_room_is_one_error_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    memory = TrunkMemory(0)
    with pytest.raises(TrunkCacheError, match=r"No space left on device.*TMPDIR") as error:
        TrunkCache([1 << 20], 1024, torch.float32, memory)
    assert str(error.value).startswith("4.00 GiB of trunk outputs") and str(tmp_path) in str(error.value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(TrunkCacheError, match="No such file"):
        TrunkCache([8], WIDTH, torch.float32, memory)


def test_writes_and_reads_that_stop_halfway_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:5], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: read(fd, [buffers[0][:7]], offset))
    found = outputs([4, 5], torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(filled(found, TrunkMemory(0)), found, strict=True))


def test_a_file_that_somebody_cut_is_an_error() -> None:
    cache = filled(outputs([4], torch.float32), TrunkMemory(0))
    assert cache._file is not None
    os.ftruncate(cache._file.fileno(), 10)
    with pytest.raises(TrunkCacheError, match="ends at byte 10"):
        cache[0]


# Peak memory, and what a dying process leaves: in a process of its own.

FILL = """
import resource, signal, sys, tempfile, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
from adapters.trunk_cache import TrunkCache, TrunkMemory
count = int(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache = TrunkCache([256] * count, 1024, torch.bfloat16, TrunkMemory(16 << 20))
for i in range(count):
    cache.put(i, torch.full((256, 1024), float(i % 200), dtype=torch.bfloat16))
assert all(float(cache[i][-1, -1]) == i % 200 for i in range(count))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, flush=True)
if len(sys.argv) > 2:
    import time
    while True:  # a signal just before a read that waits would be lost
        time.sleep(0.05)
"""


def fill(count: int, *more: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, str(count), *more]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


def test_peak_memory_stays_at_the_limit_however_much_is_kept() -> None:
    """128 MiB of outputs, 16 MiB allowed."""
    printed, _ = fill(256).communicate(timeout=120)
    assert int(printed) < 64


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    process = fill(64, "wait", env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None and process.stdout.readline()
        assert not list(tmp_path.iterdir())
        process.send_signal(how)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.wait()
        process.communicate()
    assert not list(tmp_path.iterdir())
