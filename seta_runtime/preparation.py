"""Loading beside the running steps: a thread of the worker reads, verifies and packs a generation.

`add_lora` runs between two steps, so whatever it does is a pause for every request. Here all that takes time is done
before: `start` returns at once, `state` is asked now and then, and `add_lora` then only puts the finished generation
into a slot.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from adapters.bank import BankError
from seta_runtime.resident import ResidentGeneration

logger = logging.getLogger("seta.runtime")

Load = Callable[[int, int, str], ResidentGeneration]

_NICENESS = 10


class Preparations:
    """Generations on their way into memory, by adapter id. `load(adapter_id, generation, digest)` does the work."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._futures: dict[int, Future[ResidentGeneration]] = {}

    def start(self, adapter_id: int, generation: int, digest: str) -> None:
        future: Future[ResidentGeneration] = Future()
        self._futures[adapter_id] = future
        arguments = (future, adapter_id, generation, digest)
        threading.Thread(target=self._run, args=arguments, name=f"prepare {generation}", daemon=True).start()

    def state(self, adapter_id: int) -> dict[str, Any]:
        """`state` is loading, ready (with `resident_bytes`) or failed (with the exception's `error` and `message`)."""
        future = self._futures.get(adapter_id)
        if future is None:
            return {"state": "failed", "error": "LookupError", "message": f"adapter {adapter_id} is not being loaded"}
        if not future.done():
            return {"state": "loading"}
        error = future.exception()
        if error is None:
            return {"state": "ready", "resident_bytes": future.result().nbytes}
        # Only a bank's own errors are written to be shown: they hold no absolute path.
        message = str(error) if isinstance(error, BankError) else "it could not be loaded; the engine's log says why"
        return {"state": "failed", "error": type(error).__name__, "message": message}

    def take(self, adapter_id: int) -> ResidentGeneration | None:
        """The finished generation, handed over once; None if there is none."""
        future = self._futures.get(adapter_id)
        if future is None or not future.done() or future.exception() is not None:
            return None
        del self._futures[adapter_id]
        return future.result()

    def discard(self, adapter_id: int) -> None:
        """Forget it, finished or not. A thread that still reads ends by itself, and its result is dropped."""
        self._futures.pop(adapter_id, None)

    def _run(self, future: Future[ResidentGeneration], adapter_id: int, generation: int, digest: str) -> None:
        _step_aside()
        try:
            future.set_result(self._load(adapter_id, generation, digest))
        except Exception as error:  # whoever asks for the state is told
            future.set_exception(error)
            if not isinstance(error, BankError):
                logger.exception("generation %d could not be loaded", generation)


def _step_aside() -> None:
    """The steps go first: this thread is nicer than they, and may use the cores that they are not bound to.

    A CPU worker binds its threads to cores and new threads inherit that; the parent process is not bound.
    """
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
        os.sched_setaffinity(thread, os.sched_getaffinity(os.getppid()))
