"""Faults for the processes of a server under test; Python imports this module in each of them when it starts.

The directory $SETA_TEST_FAULTS holds a file for each fault in force:

    slow      every opening of an expert or a gate takes as many seconds as the file says
    broken    the process with the number that the file says cannot open an expert or a gate
    die-before-current, die-after-current      the process kills itself when it replaces CURRENT
"""

import errno
import os
import signal
import time
from typing import Any

FAULTS = os.environ.get("SETA_TEST_FAULTS")


def fault(name: str) -> str | None:
    try:
        with open(f"{FAULTS}/{name}", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


if FAULTS is not None:
    real_open, real_replace = os.open, os.replace

    def open_slowly(path: Any, *args: Any, **options: Any) -> int:
        if isinstance(path, (str, os.PathLike)) and "objects/sha256" in os.fspath(path):
            if fault("broken") == str(os.getpid()):
                raise OSError(errno.EIO, "a fault of the test")
            time.sleep(float(fault("slow") or 0))
        return real_open(path, *args, **options)

    def replace_or_die(source: Any, target: Any, **options: Any) -> None:
        is_current = os.fspath(target).endswith("/CURRENT")
        if is_current and fault("die-before-current") is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        real_replace(source, target, **options)
        if is_current and fault("die-after-current") is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    os.open, os.replace = open_slowly, replace_or_die  # type: ignore[assignment]
