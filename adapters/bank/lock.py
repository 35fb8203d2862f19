"""One writer at a time, across processes and threads. Readers never wait: what they read is never rewritten."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import BankConflict
from .files import safe_path, write_error

LOCK_NAME = ".lock"


@contextlib.contextmanager
def writer_lock(root: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold the bank's `flock`. The kernel releases it when the process dies, so a crash leaves nothing to clean up."""
    path = safe_path(root, LOCK_NAME)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_error(LOCK_NAME, error) from None
    try:
        _acquire(descriptor, timeout_seconds)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BankConflict(
                    f"the bank is still being written to by another process after {timeout_seconds:g} s; try again"
                ) from None
        time.sleep(0.02)
