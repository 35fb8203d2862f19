"""A whole load test: check that the server answers, run stage after stage, sum up."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import aiohttp

from . import scenarios
from .admin import Admin
from .arrivals import due_times
from .client import Client
from .driver import Driver
from .errors import LoadTestError
from .hot_add import HotAdd
from .progress import Watch
from .recorder import Recorder
from .report.schema import Action, Report, StageReport, Target
from .report.summary import stage_report, warnings
from .settings import Settings
from .stages import Stage
from .workload import Row, in_order, mixed, read_rows


class LoadTest:
    """One load test. `run` may be called once."""

    def __init__(self, settings: Settings, watch: Watch, api_key: str | None, admin_key: str | None = None) -> None:
        self.settings = settings
        self.rows: list[Row] = read_rows(settings.workload)
        self.stages: list[StageReport] = []
        self.actions: list[Action] = []
        self.capacity: float | None = None
        self._api_key = api_key
        self._admin_key = admin_key
        self._watch = watch
        self._stop = asyncio.Event()
        self._started = time.perf_counter()
        next(mixed(self.rows, settings, settings.seed))  # says now what is wrong with the workload

    async def run(self) -> Report:
        """Raises LoadTestError if the server does not answer the first request; what fails later is in the report."""
        created = datetime.now(UTC)
        settings = self.settings
        async with Client(settings, settings.model or "", self._api_key) as client, aiohttp.ClientSession() as session:
            client.model = settings.model or await client.first_model()
            await self._first_request(client)
            admin = Admin(session, settings.admin_url, self._admin_key)
            hot_add = HotAdd(admin, settings.generations, self.actions.append)
            if settings.scenario == "hot-add":
                await hot_add.check()
            self._started = time.perf_counter()
            with _stopped_by_signals(self._stop):
                await self._run_stages(client, hot_add)
            return self._report(client.model, created)

    async def _run_stages(self, client: Client, hot_add: HotAdd) -> None:
        if scenarios.needs_capacity(self.settings):
            probed = await self._run_stage(client, scenarios.probe(self.settings), nullcontext())
            self.capacity = probed.total.requests_per_second
            if not self.capacity:
                return  # interrupted, or nothing completed: the report shows which
        for stage in scenarios.plan(self.settings, self.capacity):
            if self._stop.is_set():
                return
            changes = hot_add.during(stage, self._started) if stage.activations else nullcontext()
            await self._run_stage(client, stage, changes)

    async def _run_stage(self, client: Client, stage: Stage, changes: AbstractAsyncContextManager[None]) -> StageReport:
        """`changes`: what else happens while the load runs."""
        seed = self.settings.seed * 1000 + len(self.stages)
        requests = mixed(self.rows, self.settings, seed)
        times = None if stage.arrivals == "closed" else due_times(stage, random.Random(seed))
        recorder = Recorder(self.settings, time.perf_counter(), stage.warmup_seconds)
        with self._watch.stage(stage, recorder):
            driver = Driver(stage, client.ask, requests, recorder)
            async with changes:
                await driver.run(times, self.settings.max_in_flight, self._stop)
        self.stages.append(stage_report(stage, recorder, self._started))
        return self.stages[-1]

    async def _first_request(self, client: Client) -> None:
        """Not counted: it finds a wrong address, name or key before a thousand requests do, and it opens the engine."""
        (request, *_) = in_order(self.rows[:1], 1)
        outcome = await client.ask(request, time.perf_counter())
        if outcome.error is not None:
            raise LoadTestError(f"{client.endpoint} (model {client.model}): {outcome.error}: {outcome.detail}")

    def _report(self, model: str, created: datetime) -> Report:
        return Report(
            version=_version(),
            created=created,
            scenario=self.settings.scenario,
            target=Target(url=self.settings.url, model=model, api=self.settings.api),
            settings=self.settings.model_dump(mode="json"),
            interrupted=self._stop.is_set(),
            capacity_per_second=self.capacity,
            warnings=tuple(warnings(self.stages)),
            stages=tuple(self.stages),
            actions=tuple(self.actions),
        )


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the test and keeps what was measured; the second ends the process."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop_once() -> None:
        stop.set()
        for one in signals:
            loop.remove_signal_handler(one)

    for one in signals:
        loop.add_signal_handler(one, stop_once)
    try:
        yield
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


def _version() -> str:
    try:
        return version("seta")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
