"""Sends one stage's requests, by the clock (open loop) or by the answers (closed loop).

In an open loop a request is due at a time that does not depend on any answer. If the client or the server falls
behind, the request goes out late, but its latency still counts from when it was due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from .outcome import Outcome
from .recorder import Recorder
from .stages import Stage
from .workload import Request

Ask = Callable[[Request, float], Awaitable[Outcome]]


class Driver:
    """One stage: `run` returns when every request has ended, or soon after `stop` is set."""

    def __init__(self, stage: Stage, ask: Ask, requests: Iterator[Request], recorder: Recorder) -> None:
        self.stage = stage
        self.recorder = recorder
        self._ask = ask
        self._requests = requests
        self._left = stage.requests
        self._group = asyncio.TaskGroup()

    async def run(self, times: Iterator[float] | None, max_in_flight: int, stop: asyncio.Event) -> None:
        """`times`: when requests are due, in seconds after the stage's start; None for a closed loop."""
        working = asyncio.create_task(self._all(times, max_in_flight))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            working.cancel()
            await asyncio.wait({working})
        if not working.cancelled():
            working.result()

    async def _all(self, times: Iterator[float] | None, max_in_flight: int) -> None:
        async with self._group:
            if times is not None:
                await self._open(times, max_in_flight)
                return
            for _ in range(self.stage.concurrency or 1):
                self._group.create_task(self._one_client())

    async def _open(self, times: Iterator[float], max_in_flight: int) -> None:
        places = asyncio.Semaphore(max_in_flight)
        for offset in times:
            request = self._next(offset)
            if request is None:
                return
            due = self.recorder.start + offset
            await asyncio.sleep(due - time.perf_counter())
            await places.acquire()
            self._group.create_task(self._one(request, due)).add_done_callback(lambda _: places.release())

    async def _one_client(self) -> None:
        while True:
            now = time.perf_counter()
            request = self._next(now - self.recorder.start)
            if request is None:
                return
            await self._one(request, now)

    def _next(self, offset: float) -> Request | None:
        """The next request, None once the stage has sent all it should."""
        if offset >= self.stage.seconds or self._left == 0:
            return None
        self._left = None if self._left is None else self._left - 1
        return next(self._requests, None)

    async def _one(self, request: Request, due: float) -> None:
        self.recorder.in_flight += 1
        try:
            self.recorder.add(await self._ask(request, due))
        except asyncio.CancelledError:
            self.recorder.add_unfinished(request.task, due, time.perf_counter())
            raise
        finally:
            self.recorder.in_flight -= 1
