"""The first moments of `seta serve`: what has to be in place before torch and vLLM are imported, here or elsewhere."""

import logging

from seta_runtime import fork_server

from . import environment
from .access import Access
from .config import ServeConfig
from .listen import Sockets
from .processes import end_engine_processes
from .terminal import Terminal


def launch(config: ServeConfig, sockets: Sockets, access: Access) -> None:
    """Serve on listening sockets until told to end. Raises: ServeError with a sentence that says why not."""
    environment.prepare(config)
    terminal = Terminal(is_quiet=config.log_level != "debug")
    try:
        _log_to(terminal, config)
        if config.enforce_eager and fork_server.is_supported():
            environment.disable_compiler()
            fork_server.start()  # its imports and those below run side by side
        from .run import serve

        serve(config, terminal, sockets, access)
    finally:
        end_engine_processes()
        terminal.restore()


def _log_to(terminal: Terminal, config: ServeConfig) -> None:
    handler = logging.StreamHandler(terminal.err)
    handler.setFormatter(logging.Formatter("seta: %(levelname)s %(message)s"))
    for name in ("seta", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        log.setLevel("WARNING" if config.log_level == "info" else config.log_level.upper())
    logging.getLogger("seta.admin").setLevel(config.log_level.upper())  # what was ordered is told, unlike each request
