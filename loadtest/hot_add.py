"""Activations and rollbacks while a stage's load runs: activate a generation, take it back, activate the next, …"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from .admin import Admin, Refused
from .errors import LoadTestError
from .report.schema import Action
from .stages import Stage


class HotAdd:
    """Changes what the server serves, and leaves it as it was found. `record` gets every change that was tried."""

    def __init__(self, admin: Admin, generations: Sequence[int], record: Callable[[Action], None]) -> None:
        self._admin = admin
        self._generations = generations
        self._record = record
        self._found = 0
        self._serving = 0

    async def check(self) -> None:
        """Raises LoadTestError if the API is not there or the generations cannot be activated."""
        self._found, known = await self._admin.generations()
        self._serving = self._found
        if missing := sorted(set(self._generations) - known):
            names = ", ".join(map(str, sorted(known)))
            raise LoadTestError(f"--generations: the server has {names}, not {', '.join(map(str, missing))}")
        if self._found in self._generations:
            raise LoadTestError(f"--generations: {self._found} serves already; name others, or roll back first")

    @asynccontextmanager
    async def during(self, stage: Stage, test_start: float) -> AsyncIterator[None]:
        """Make the stage's changes while the block runs, spread evenly over the stage's seconds."""
        changing = asyncio.create_task(self._run(stage, test_start))
        try:
            yield
        finally:
            changing.cancel()
            await asyncio.wait({changing})
            await self._restore(test_start)
        if not changing.cancelled():
            changing.result()

    async def _run(self, stage: Stage, test_start: float) -> None:
        start, gap = time.perf_counter(), stage.seconds / (stage.activations + 1)
        for index in range(stage.activations):
            await asyncio.sleep(start + (index + 1) * gap - time.perf_counter())
            is_rollback = index % 2 == 1
            generation = self._found if is_rollback else self._generations[index // 2 % len(self._generations)]
            await self._change(generation, is_rollback, test_start)

    async def _restore(self, test_start: float) -> None:
        """A change may have been cut short, so the server is asked what serves."""
        try:
            self._serving, _ = await self._admin.generations()
        except LoadTestError as error:
            self._note("activate", self._found, time.perf_counter(), test_start, str(error))
            return
        if self._serving != self._found:
            await self._change(self._found, False, test_start)

    async def _change(self, generation: int, is_rollback: bool, test_start: float) -> None:
        started, error = time.perf_counter(), None
        try:
            if is_rollback:
                self._serving = await self._admin.rollback(self._serving)
            else:
                self._serving = await self._admin.activate(generation, self._serving)
            if self._serving != generation:
                error = f"generation {self._serving} serves now, not {generation}"
        except Refused as refused:
            error = str(refused)
        self._note("rollback" if is_rollback else "activate", generation, started, test_start, error)

    def _note(self, kind: str, generation: int, started: float, test_start: float, error: str | None) -> None:
        values = {"kind": kind, "generation": generation, "error": error}
        seconds = {"at_seconds": round(started - test_start, 3), "seconds": round(time.perf_counter() - started, 6)}
        self._record(Action.model_validate(values | seconds))
