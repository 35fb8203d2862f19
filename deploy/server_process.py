"""One child process that never outlives its parent: started in a group of its own, ended group and all."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Sequence

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.1
# Signal, whether to the whole group, seconds to wait: the server ends its own workers when asked politely.
ESCALATION = ((signal.SIGINT, False, 20.0), (signal.SIGTERM, True, 5.0), (signal.SIGKILL, True, 5.0))


def start(command: Sequence[str], directory: Path) -> "subprocess.Popen[bytes]":
    """Ctrl-C reaches only us, and we pass it on; if we are killed outright the kernel sends the child SIGTERM."""
    return subprocess.Popen(
        command, cwd=str(directory), stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process and whatever is left of its group. A second Ctrl-C goes on to the next signal at once."""
    for number, is_for_group, seconds in ESCALATION:
        with contextlib.suppress(KeyboardInterrupt):
            if not is_alive(process):
                return
            send(process, number, is_for_group)
            wait(process, seconds)


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < deadline:
        # Once the leader is gone what is left of the group is asked no further.
        if process.poll() is not None:
            send(process, signal.SIGKILL, True)
        time.sleep(POLL_SECONDS)


def is_alive(process: "subprocess.Popen[bytes]") -> bool:
    """The leader, or anything in its group."""
    if process.poll() is None:
        return True
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 0)
        return True
    return False


def send(process: "subprocess.Popen[bytes]", number: int, is_for_group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if is_for_group:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
