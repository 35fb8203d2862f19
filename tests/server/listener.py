"""A real uvicorn listener, configured as `server.run` does, over an app of the test's own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp

from server.config import ServeConfig
from server.connections import uvicorn_options
from server.listen import bind
from tests.server.process import free_port


@dataclass
class Listener:
    """`server`: uvicorn's, for looking at its connections."""

    port: int
    server: uvicorn.Server
    failures: list[BaseException] = field(default_factory=list)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextmanager
def listening(app: ASGIApp, config: ServeConfig) -> Iterator[Listener]:
    config = config.model_copy(update={"port": free_port(), "admin_port": 0})
    options = uvicorn.Config(
        app, log_config=None, lifespan="off", timeout_graceful_shutdown=1, **uvicorn_options(config)
    )
    listener = Listener(config.port, uvicorn.Server(options))
    with bind(config) as sockets:
        thread = threading.Thread(target=lambda: listener.server.run(sockets=[sockets.clients]))
        thread.start()
        try:
            yield listener
        finally:
            listener.server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "uvicorn did not end"
