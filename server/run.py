"""The life of a server process: answer health checks, load, serve, end without leaving anything behind.

The HTTP server is up before the model is, so `/health` and `/ready` tell the truth from the first moment. The engine
loads in a thread. SIGINT and SIGTERM end the process at any moment: while loading the engine's processes are ended at
once; while serving, running requests get `shutdown_seconds` to finish. A second signal does not wait.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from . import console, preflight, tracing
from .access import Access
from .activations import MeteredOperations
from .admin import PREFIX
from .admission import Admission, bounds
from .app import build_admin_app, build_app
from .config import ServeConfig, ServeError
from .connections import uvicorn_options
from .generations import Generations
from .inventory import Inventory
from .listen import Sockets
from .loader import Loader
from .metrics import measure_bank, watch_tokens
from .preflight import Plan
from .processes import end_engine_processes
from .routing_counts import RoutingCounts
from .service import Administration, Service, Serving
from .terminal import Terminal, hush_vllm
from .uploads import Uploads

_SAY_EVERY_SECONDS = 10.0
_DEAD_ENGINE_SECONDS = 5.0  # long enough for a load balancer to see /ready fail
_ABANDON_SECONDS = 3.0


def serve(config: ServeConfig, terminal: Terminal, sockets: Sockets, access: Access) -> None:
    """Serve on listening sockets until told to end. Raises: ServeError with a sentence that says why not."""
    plan = _check(config, terminal)
    service = Service(config, access)
    listeners = [(_http(build_app(service), config), sockets.clients)]
    if sockets.admin is not None:
        listeners.append((_http(build_admin_app(service), config), sockets.admin))
    loop_factory = listeners[0][0].config.get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(Process(service, plan, terminal, listeners).run())


def _http(app: FastAPI, config: ServeConfig) -> "QuietServer":
    return QuietServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=config.log_level == "debug",
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=config.shutdown_seconds,
            **uvicorn_options(config),
        )
    )


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers; `Process` has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Process:
    """What happens between the first signal handler and the last line."""

    def __init__(
        self, service: Service, plan: Plan, terminal: Terminal, listeners: list[tuple[QuietServer, socket.socket]]
    ) -> None:
        self._service = service
        self._plan = plan
        self._terminal = terminal
        self._listeners = listeners
        self._end = asyncio.Event()
        self._start = time.monotonic()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        answering = [asyncio.create_task(http.serve(sockets=[sock])) for http, sock in self._listeners]
        try:
            await self._load_and_serve()
        finally:
            self._service.is_stopping = True
            for http, _ in self._listeners:
                http.should_exit = True
            await asyncio.gather(*answering)
            await asyncio.to_thread(self._stop_engine)

    async def _load_and_serve(self) -> None:
        loading = asyncio.create_task(self._load())
        ending = asyncio.create_task(self._end.wait())
        try:
            while not loading.done() and not ending.done():
                await asyncio.wait({loading, ending}, timeout=_SAY_EVERY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not loading.done() and not ending.done():
                    self._terminal.say(f"  still loading ({self._seconds:.0f} s)")
            if not ending.done():
                loading.result()
                await self._until_end(ending)
            self._terminal.say("stopping")
            self._terminal.hold()
            logging.getLogger("uvicorn.error").setLevel("CRITICAL")  # those cut off are told so themselves
        finally:
            ending.cancel()
            await self._abandon(loading)

    async def _load(self) -> None:
        from .engine import start_engine
        from .handlers import build_handlers, check_parsers

        config, plan = self._service.config, self._plan
        await asyncio.to_thread(check_parsers, config)
        try:
            engine = await asyncio.to_thread(start_engine, config, plan)
        except ServeError:
            raise
        except Exception as error:  # vLLM raises all kinds; the reason is in its processes' output
            raise ServeError(_no_start(self._terminal.cause() or str(error))) from error
        self._terminal.say(f"  engine up after {self._seconds:.1f} s")
        if config.log_level != "debug":
            hush_vllm()
        handlers = build_handlers(engine, config)
        generations = Generations(config.name, config.base_name, handlers.models.lora_requests)
        engine.in_engine = generations.in_engine
        engine.watch = watch_tokens(generations, self._service.requests)
        loader = Loader(engine, plan.bank.root, generations.pinned_name)
        operations = MeteredOperations(generations, plan.bank, loader, config.max_generations)
        start = time.monotonic()
        try:
            await operations.start()
        except Exception as error:
            engine.shutdown()
            raise ServeError(f"generation {plan.manifest.generation} does not load: {error}") from error
        self._terminal.say(f"  generation {generations.current} loaded in {time.monotonic() - start:.2f} s")
        counts = RoutingCounts(engine.ask_replicas, self._service.requests.tasks.tell)
        await counts.refresh()  # from here on the workers note which task leads
        inventory = Inventory(plan.bank, generations, operations, counts)
        uploads = Uploads(plan.bank, config.max_upload_bytes, config.client_seconds)
        administration = Administration(plan.bank, operations, inventory, uploads)
        admission = Admission(bounds(config, engine.vllm_config.scheduler_config.max_num_seqs))
        self._service.serving = Serving(
            engine, handlers, generations, counts, measure_bank(plan.bank), admission, administration
        )

    async def _until_end(self, ending: "asyncio.Task[bool]") -> None:
        """Raises: ServeError if the engine dies."""
        self._say_ready()
        self._terminal.release()
        while not ending.done():
            await asyncio.wait({ending}, timeout=0.5)
            if not ending.done() and self._service.phase == "engine dead":
                self._terminal.warn("the engine has stopped unexpectedly; ending")
                await asyncio.wait({ending}, timeout=_DEAD_ENGINE_SECONDS)
                raise ServeError("the engine stopped; its last lines are above, or with --log-level debug")

    async def _abandon(self, loading: "asyncio.Task[None]") -> None:
        """Loading happens in a thread, which ends when the processes it waits for do; but it may be importing yet."""
        deadline = time.monotonic() + _ABANDON_SECONDS
        while not loading.done():
            await asyncio.to_thread(end_engine_processes)
            await asyncio.wait({loading}, timeout=0.2)
            if time.monotonic() > deadline:
                end_engine_processes()
                os._exit(0)  # a thread cannot be stopped, and there is nothing here to save
        loading.exception()  # seen: the caller raises it, or it was we who ended the engine

    def _stop_engine(self) -> None:
        end_engine_processes()
        if self._service.serving is not None:
            self._service.serving.engine.shutdown()  # at once: it would have waited for its processes, no longer
        tracing.flush()

    def _on_signal(self) -> None:
        if self._end.is_set():
            for http, _ in self._listeners:
                http.force_exit = True
        self._end.set()

    def _say_ready(self) -> None:
        serving = self._service.serving
        assert serving is not None
        config = self._service.config
        host = f"[{config.host}]" if ":" in config.host else config.host
        if self._service.access.clients is None:
            self._terminal.say("no API key is configured: the server answers this machine only, whoever asks there")
        name, *others = serving.generations.names
        self._terminal.say(
            f"ready in {self._seconds:.1f} s at http://{host}:{config.port}/v1: "
            f"{name} is generation {serving.generations.current}; also {', '.join(others)}"
        )
        self._terminal.say(f"console at http://{host}:{config.port}{console.PATH}")
        if config.admin_address is not None:
            no_key = " (no admin key is configured: this machine only)" if self._service.access.admins is None else ""
            address = "http://{}:{}".format(*config.admin_address)
            self._terminal.say(f"administration at {address}{PREFIX}, console at {address}{console.PATH}{no_key}")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start


def _check(config: ServeConfig, terminal: Terminal) -> Plan:
    terminal.say(f"reading bank {config.bank.name} and base model {config.model}")
    plan = preflight.check(config)
    manifest = plan.manifest
    terminal.say(
        f"generation {manifest.generation} with {len(manifest.tasks)} tasks fits the base model; starting the engine"
    )
    return plan


def _no_start(cause: str) -> str:
    hint = "; give it more with --kv-cache-gib, or lower --max-model-len" if "cache" in cause else ""
    return f"the engine did not start: {cause}{hint}"
