"""What the app does with failures nobody planned; the service behind it is a fake."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from server.app import build_app
from server.config import build_config
from server.service import Service


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(build_config(model="m", bank=tmp_path))


@pytest.fixture
def app(service: Service) -> FastAPI:
    app = build_app(service)

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("a private thing")

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(60)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield "data: 1\n\n"
            await asyncio.sleep(60)

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def call(app: FastAPI, path: str, method: str = "GET") -> httpx.Response:
    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            return await http.request(method, path)

    return asyncio.run(request())


def test_an_unexpected_exception_is_a_500_without_its_text(app: FastAPI) -> None:
    response = call(app, "/broken")
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "The server failed to answer this request; its log says why",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


def test_a_method_that_a_path_does_not_have_is_answered_with_all_that_it_has(app: FastAPI) -> None:
    @app.post("/broken")
    async def mended() -> None:
        """The second route of this path."""

    refused = call(app, "/broken", "PUT")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
    assert refused.json()["error"]["message"] == "The route takes GET, POST only"


def test_before_the_model_is_loaded(app: FastAPI) -> None:
    assert call(app, "/health").json() == {"status": "loading"}
    assert (call(app, "/ready").status_code, call(app, "/ready").json()) == (503, {"status": "loading"})
    refused = call(app, "/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
    assert refused.headers["retry-after"] == "5"
    assert "seta_ready 0.0" in call(app, "/metrics").text


def with_engine(service: Service, errored: bool) -> None:
    service.serving = SimpleNamespace(engine=SimpleNamespace(errored=errored))  # type: ignore[assignment]


def test_with_a_dead_engine_only_a_restart_helps(app: FastAPI, service: Service) -> None:
    with_engine(service, errored=True)
    assert [call(app, path).status_code for path in ("/health", "/ready")] == [503, 503]
    assert call(app, "/v1/models").json()["error"]["code"] == "engine_dead"


def test_while_stopping_the_process_is_alive_but_not_ready(app: FastAPI, service: Service) -> None:
    with_engine(service, errored=False)
    service.is_stopping = True
    assert [call(app, path).status_code for path in ("/health", "/ready")] == [200, 503]


def cut_off(app: FastAPI, service: Service, path: str) -> list[dict[str, Any]]:
    """The ASGI messages of a request that is cancelled as uvicorn does when its patience ends."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        request = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.1)
        service.is_stopping = True
        request.cancel()
        await request

    asyncio.run(run())
    return sent


def test_a_request_cut_off_by_the_shutdown_gets_a_503(app: FastAPI, service: Service) -> None:
    start, body = cut_off(app, service, "/slow")
    assert start["status"] == 503
    assert b'"code":"stopping"' in body["body"]


def test_a_stream_cut_off_by_the_shutdown_ends_with_an_error(app: FastAPI, service: Service) -> None:
    start, first, last = cut_off(app, service, "/stream")
    assert (start["status"], first["body"]) == (200, b"data: 1\n\n")
    assert last["body"].startswith(b'data: {"error": {"message": "The server is stopping"')
    assert last["more_body"] is False
