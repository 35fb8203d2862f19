"""The process's largest resident set, from a point on."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def reset_peak() -> None:
    """Start over from the memory in use now. Where the system cannot, the peak is the whole process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Bytes of the largest resident set since `reset_peak`."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
