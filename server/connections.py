"""HTTP connections that a slow or idle client cannot hold for long, nor fill with memory.

uvicorn bounds what it buffers (64 KiB each way, headers 16 KiB) but waits for ever: for the first request of a new
connection, for a request line that comes byte by byte, for a reader that does not read. `Connection` gives each of
these `client_seconds` and then drops the connection; a request that was being answered over it is told of a disconnect
and cancelled. A request's body is timed in `bodies`. When all connections are taken, a new one takes the place of the
one that has been idle longest.

It is built on h11, in Python, and not on the faster httptools, which bounds neither headers nor pipelined requests.
"""

import asyncio
import json
import logging
import resource
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .config import ServeConfig

_NOISE = {"Invalid HTTP request received.", "Unsupported upgrade request."}  # anybody could fill the log with these
_OTHER_FILES = 256  # descriptors that the process needs for other things


def _answer(status: str, message: str, code: str, headers: str = "") -> bytes:
    """A whole response in our errors' shape, for when there is no request that an app could answer."""
    error = {"message": message, "type": "invalid_request_error" if status < "5" else "server_error", "param": None}
    body = json.dumps({"error": error | {"code": code}})
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


_BUSY = _answer("503 Service Unavailable", "Too many connections", "too_many_connections", "retry-after: 5\r\n")
_MALFORMED = _answer("400 Bad Request", "This is not valid HTTP", "invalid_http")


def uvicorn_options(config: ServeConfig) -> dict[str, Any]:
    """What `uvicorn.Config` is told about connections; each listener has a bound of its own."""
    logging.getLogger("uvicorn.error").addFilter(_is_no_noise)
    bounds = {
        "patience": config.client_seconds,
        "most": min(config.max_connections, max(1, _file_limit(config.max_connections) - _OTHER_FILES)),
    }
    return {
        "http": type("BoundedConnection", (Connection,), bounds),
        "ws": "none",
        "timeout_keep_alive": config.client_seconds,
    }


def _is_no_noise(record: logging.LogRecord) -> bool:
    return record.msg not in _NOISE


def _file_limit(connections: int) -> int:
    """The number of files this process may have open, raised as far as the connections need and the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


class Connection(H11Protocol):
    """`patience`: seconds. `most`: connections of this listener."""

    patience: ClassVar[float]
    most: ClassVar[int]

    _waiting_since: float  # since when no request is being answered
    _stuck_since: float | None = None  # since when the client does not take what it is sent, or we are closing
    _watch: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Between requests: nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        self._look()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()

    def on_response_complete(self) -> None:
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._stuck_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stuck_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own would fail where an answer has begun already: then there is nothing left to say."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return self.transport.abort()
        self.transport.write(_MALFORMED)
        self.transport.close()

    def _look(self) -> None:
        """Look at oneself a few times per patience, whichever way uvicorn left the connection."""
        if self.transport.is_closing() and self._stuck_since is None:
            self._stuck_since = self.loop.time()
        since = self._waiting_since if self.is_waiting else None
        waited = [self.loop.time() - start for start in (since, self._stuck_since) if start is not None]
        if max(waited, default=0.0) > self.patience:
            return self.transport.abort()
        self._watch = self.loop.call_later(self.patience / 4, self._look)

    def _make_room(self) -> None:
        idle = [other for other in self.connections if isinstance(other, Connection) and other.is_waiting]
        idle = [other for other in idle if other is not self and not other.transport.is_closing()]
        if idle:
            return min(idle, key=lambda other: other._waiting_since).transport.abort()
        self.transport.write(_BUSY)
        self.transport.close()
