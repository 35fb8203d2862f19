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
LEARNER_LOCK_NAME = ".learner.lock"


def writer_lock(root: Path, timeout_seconds: float) -> contextlib.AbstractContextManager[None]:
    """Held for each write. Raises BankConflict, BankIOError."""
    busy = f"the bank is still being written to by another process after {timeout_seconds:g} s; try again"
    return _lock(root, LOCK_NAME, timeout_seconds, busy)


def learner_lock(root: Path) -> contextlib.AbstractContextManager[None]:
    """Held by the one process that learns into the bank, from start to end. Raises BankConflict, BankIOError."""
    return _lock(root, LEARNER_LOCK_NAME, 0.0, "another process is learning into the bank; let it end, or end it")


@contextlib.contextmanager
def _lock(root: Path, name: str, timeout_seconds: float, busy: str) -> Iterator[None]:
    """Hold a `flock`. The kernel releases it when the process dies, so a crash leaves nothing to clean up."""
    path = safe_path(root, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_error(name, error) from None
    try:
        _acquire(descriptor, timeout_seconds, busy)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, timeout_seconds: float, busy: str) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BankConflict(busy) from None
        time.sleep(0.02)
