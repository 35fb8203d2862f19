"""A slice: a few steps of one engine, timed, with what else the machine did meanwhile."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
STEAL_COLUMN = 8


@dataclass(frozen=True)
class Slice:
    """`step_seconds` of the clock for each step, `cpu_seconds` of this process's threads for all, `tokens` in all.

    How disturbed it was: `steal_seconds`, which the machine below took from all cores (in steps of 10 ms), and
    `preemptions`, how often this process had to leave a core to another.
    """

    tokens: int
    step_seconds: list[float]
    cpu_seconds: float
    steal_seconds: float
    preemptions: int

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds)


def timed(step: Callable[[], int], steps: int) -> Slice:
    """Do `step`, which returns its number of tokens, so many times."""
    steal, preemptions, cpu = steal_seconds(), _preemptions(), time.process_time()
    tokens, step_seconds = 0, []
    for _ in range(steps):
        start = time.perf_counter()
        tokens += step()
        step_seconds.append(round(time.perf_counter() - start, 6))
    cpu = time.process_time() - cpu
    return Slice(tokens, step_seconds, round(cpu, 6), steal_seconds() - steal, _preemptions() - preemptions)


def steal_seconds() -> float:
    """Since the machine's start, of all cores; 0 where the system does not say."""
    try:
        first = STAT.read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return 0.0
    return int(first[STEAL_COLUMN]) / os.sysconf("SC_CLK_TCK") if len(first) > STEAL_COLUMN else 0.0


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class IdleMeter:
    """CPU time of this process while it is not asked anything: a waiting engine must leave the cores to the others."""

    def __init__(self) -> None:
        self.cpu_seconds = self.seconds = 0.0
        self._since: tuple[float, float] | None = None

    def rest(self) -> None:
        self._since = (time.process_time(), time.monotonic())

    def wake(self) -> None:
        if self._since is not None:
            self.cpu_seconds += time.process_time() - self._since[0]
            self.seconds += time.monotonic() - self._since[1]
        self._since = None

    @property
    def share(self) -> float:
        return self.cpu_seconds / self.seconds if self.seconds else 0.0
