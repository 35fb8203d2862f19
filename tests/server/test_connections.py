"""Slow and idle clients against a real uvicorn: each is let go, and what it could hold meanwhile is bounded."""

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from server.bodies import read_json_object
from server.config import ServeConfig, build_config
from server.connections import uvicorn_options
from server.errors import ApiError
from server.listen import bind
from tests.server.listener import Listener, listening
from tests.server.process import free_port

PATIENCE = 0.75
LATEST = 20.0  # by then it must have happened, on however busy a machine
GET = b"GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Stub:
    """An app that counts what it produces."""

    def __init__(self) -> None:
        self.produced = 0
        self.ended = 0

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/quick")
        async def quick() -> str:
            return "quick"

        @app.post("/body")
        async def body(request: Request) -> Response:
            try:
                return JSONResponse(await read_json_object(request, 1 << 20, PATIENCE))
            except ApiError as error:
                return error.response()

        @app.get("/stream")
        async def stream() -> Response:
            return StreamingResponse(self.events())

        @app.get("/large")
        async def large() -> Response:
            return Response(b"x" * (8 << 20))

        @app.get("/long")
        async def long() -> str:
            await asyncio.sleep(3 * PATIENCE)
            return "long"

        return app

    async def events(self) -> Any:
        try:
            while True:
                self.produced += 1
                await asyncio.sleep(0)
                yield b"x" * 4096
        finally:
            self.ended += 1


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return build_config(model="m", bank=tmp_path, client_seconds=PATIENCE, max_connections=3)


@pytest.fixture
def listener(stub: Stub, config: ServeConfig) -> Iterator[Listener]:
    with listening(stub.app(), config) as listener:
        yield listener


@pytest.fixture
def patient(stub: Stub, config: ServeConfig) -> Iterator[Listener]:
    """A listener that lets nobody go for being slow."""
    with listening(stub.app(), config.model_copy(update={"client_seconds": 600.0})) as listener:
        yield listener


def connect(listener: Listener, *sent: bytes) -> socket.socket:
    """A connection with little room for what it is sent, so that a reader who stops is noticed soon."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(LATEST)
    client.connect(("127.0.0.1", listener.port))
    for data in sent:
        client.sendall(data)
    return client


def ended(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection. Raises: TimeoutError if it does not."""
    received = b""
    try:
        while data := client.recv(1 << 16):
            received += data
    except ConnectionError:
        pass
    return received


def until(condition: Any) -> None:
    deadline = time.monotonic() + LATEST
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def drip(client: socket.socket, data: bytes = b"x") -> None:
    """Send a byte at a time until the server has had enough."""
    deadline = time.monotonic() + LATEST
    try:
        while time.monotonic() < deadline:
            client.sendall(data)
            time.sleep(PATIENCE / 10)
    except ConnectionError:
        return
    pytest.fail("the server still listens")


def test_a_connection_that_never_asks_is_closed(listener: Listener) -> None:
    assert ended(connect(listener)) == b""


def test_a_request_line_that_drips_in_is_not_waited_for(listener: Listener) -> None:
    drip(connect(listener, b"GET /quick?"))


def test_headers_without_end_are_bounded(listener: Listener) -> None:
    client = connect(listener, b"GET /quick HTTP/1.1\r\nhost: localhost\r\n")
    with pytest.raises(ConnectionError):
        for _ in range(100):
            client.sendall(b"x-more: " + b"y" * 8000 + b"\r\n")
            time.sleep(0.01)
    until(lambda: not listener.connections)


def test_a_connection_that_has_been_answered_may_ask_again_but_not_for_ever(listener: Listener) -> None:
    client = connect(listener, GET)
    assert client.recv(1 << 16).endswith(b'"quick"')
    client.sendall(GET)
    assert ended(client).endswith(b'"quick"')


def test_bytes_after_an_answer_do_not_keep_the_connection(listener: Listener) -> None:
    """The body of a request that was refused before it was read."""
    head = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n"
    client = connect(listener, head)
    assert b"404" in client.recv(1 << 16)
    drip(client)


@pytest.mark.parametrize("size", [b"content-length: 100", b"transfer-encoding: chunked"])
def test_a_body_that_does_not_come_is_a_408(listener: Listener, size: bytes) -> None:
    head = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" + size + b"\r\n\r\n"
    answer = ended(connect(listener, head))
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"request_timeout"' in answer


def test_a_body_that_drips_in_is_a_408(listener: Listener) -> None:
    head = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n"
    client = connect(listener, head)
    drip(client, b" ")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{"
    connect(listener, head).close()
    until(lambda: not listener.connections)
    assert not caplog.records


def test_a_reader_that_stops_holds_little_and_is_let_go(listener: Listener, stub: Stub) -> None:
    client = connect(listener, b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
    until(lambda: stub.produced > 10)
    until(lambda: stub.ended == 1)
    assert stub.produced * 4096 < 16 << 20  # the rest is in the kernel's buffers, whose size is the system's
    assert not listener.connections
    client.close()


def test_an_answer_that_nobody_takes_is_dropped(listener: Listener) -> None:
    client = connect(listener, b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n")
    until(lambda: listener.connections == 1)
    until(lambda: not listener.connections)
    client.close()


def test_a_closing_connection_whose_last_bytes_nobody_takes_is_dropped(listener: Listener) -> None:
    client = connect(listener, b"GET /large HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    until(lambda: listener.connections == 1)
    until(lambda: not listener.connections)
    client.close()


def test_a_long_answer_is_no_reason_to_close(listener: Listener) -> None:
    assert httpx.get(f"http://127.0.0.1:{listener.port}/long", timeout=LATEST).json() == "long"


def test_a_new_connection_takes_the_place_of_the_one_idle_longest(patient: Listener) -> None:
    idle = []
    for count in (1, 2, 3):
        idle.append(connect(patient))
        until(lambda: patient.connections == count)  # noqa: B023
        time.sleep(0.05)  # the loop's clock may stand still within one of its rounds
    assert connect(patient, GET).recv(1 << 16).endswith(b'"quick"')
    assert ended(idle[0]) == b""


def test_when_all_connections_are_busy_the_next_is_told_so(patient: Listener) -> None:
    busy = [connect(patient, b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n") for _ in range(3)]
    until(lambda: len(patient.server.server_state.tasks) == 3)
    answer = ended(connect(patient))
    assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in answer and b"too_many_connections" in answer
    for client in busy:
        assert client.recv(1 << 16).endswith(b'"long"')


def test_what_is_no_http_is_a_400_in_our_shape_and_not_in_the_log(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    for garbage in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"G" * 20_000):
        answer = ended(connect(listener, garbage))
        assert answer.startswith(b"HTTP/1.1 400") and b'"code": "invalid_http"' in answer
    assert not caplog.records


def test_garbage_in_the_middle_of_an_exchange_ends_it(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """The answer has begun, so there is no room for an error; and nothing may fail in the server for it."""
    head = b"GET /stream HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    client = connect(listener, head)
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    client.sendall(b"no chunk size\r\n")
    ended(client)
    until(lambda: not listener.connections)
    assert not caplog.records


def test_an_upgrade_to_websocket_is_not_taken(listener: Listener) -> None:
    head = b"GET /quick HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    client = connect(listener, head + b"sec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n\r\n")
    assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_client_whose_machine_is_gone_is_noticed(config: ServeConfig) -> None:
    """Linux gives the listener's settings to the connections it accepts."""
    with bind(config.model_copy(update={"port": free_port(), "admin_port": 0})) as sockets:
        client = socket.create_connection(sockets.clients.getsockname())
        accepted, _ = sockets.clients.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 120


def test_connections_are_no_more_than_the_files_this_process_may_open(config: ServeConfig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked = config.model_copy(update={"max_connections": 10_000_000})
    try:
        assert uvicorn_options(asked)["http"].most <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert uvicorn_options(config)["http"].most == 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
