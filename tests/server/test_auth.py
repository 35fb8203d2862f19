"""The guard: nothing gets past it without a key, whatever the app behind it is."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from server import console
from server.access import Access
from server.app import build_app
from server.auth import Guard, tenant_of
from server.config import build_config
from server.keys import KeyRing, line_for
from server.service import Service
from tests.server.routes import assert_every_route_needs_a_key, bearer, statuses

KEY, ADMIN_KEY = "seta-Alices-key", "seta-Roots-key"
OPEN = {"/health", "/ready"} | console.OPEN_PATHS


def ring(**keys: str) -> KeyRing:
    return KeyRing("keys", lambda: "\n".join(line_for(name, key) for name, key in keys.items()))


@pytest.fixture
def access() -> Access:
    return Access(clients=ring(alice=KEY), admins=ring(root=ADMIN_KEY))


def app_with(access: Access, tmp_path: Path, **options: Any) -> FastAPI:
    return build_app(Service(build_config(model="m", bank=tmp_path, **options), access))


def call(app: Any, path: str = "/v1/models", method: str = "GET", **options: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            return await http.request(method, path, **options)

    return asyncio.run(request())


def test_every_route_needs_a_key_but_for_the_written_list(access: Access, tmp_path: Path) -> None:
    assert_every_route_needs_a_key(app_with(access, tmp_path), KEY, ADMIN_KEY, OPEN)


def test_metrics_are_open_by_choice_only(access: Access, tmp_path: Path) -> None:
    app = app_with(access, tmp_path, open_metrics=True)
    assert_every_route_needs_a_key(app, KEY, ADMIN_KEY, OPEN | {"/metrics"})


def test_a_route_nobody_thought_of_is_closed(access: Access, tmp_path: Path) -> None:
    app = app_with(access, tmp_path)

    @app.get("/debug")
    async def debug() -> str:
        return "everything"

    assert_every_route_needs_a_key(app, KEY, ADMIN_KEY, OPEN)
    assert call(app, "/debug", headers=bearer(KEY)).json() == "everything"


def test_the_walk_fails_for_an_open_route(access: Access) -> None:
    """The test above can fail: an app with no guard is found out."""
    app = FastAPI(openapi_url=None)
    app.get("/debug")(lambda: "everything")
    with pytest.raises(AssertionError):
        assert_every_route_needs_a_key(app, KEY, ADMIN_KEY, set())


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/",
        "",
        "/health/",
        "//health",
        "/health/../v1/models",
        "/Health",
        "/health%2f",
        "/v1/models?x=/health",
        "/console/",
        "/console/chat.html",
        "/console/../v1/models",
        "/console/vendor/../../auth.py",
        "/console/%2e%2e/auth.py",
        "/console//client.js",
    ],
)
def test_no_other_spelling_of_an_open_path_is_open(access: Access, tmp_path: Path, path: str) -> None:
    assert call(app_with(access, tmp_path), path).status_code == 401


def test_the_errors_are_in_openais_shape_and_never_hold_the_key(access: Access, tmp_path: Path) -> None:
    app = app_with(access, tmp_path)
    for headers, status, code in (
        ({}, 401, "invalid_api_key"),
        (bearer("seta-secret"), 401, "invalid_api_key"),
        (bearer(ADMIN_KEY), 403, "wrong_listener"),
    ):
        answer = call(app, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "secret" not in answer.text and ADMIN_KEY not in answer.text
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_two_authorization_headers_are_none(access: Access, tmp_path: Path) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")]
    assert call(app_with(access, tmp_path), headers=headers).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_any_case(access: Access, tmp_path: Path, scheme: str) -> None:
    answer = call(app_with(access, tmp_path), headers={"authorization": f"{scheme} {KEY}"})
    assert answer.status_code == 503  # let in; the model is not loaded


def test_a_header_that_is_no_ascii_is_a_401(access: Access, tmp_path: Path) -> None:
    headers = [(b"authorization", b"Bearer \xff\xfe\x80")]
    assert call(app_with(access, tmp_path), headers=headers).status_code == 401


def test_the_tenant_is_the_keys_name() -> None:
    app = FastAPI(openapi_url=None)

    @app.get("/who")
    async def who(request: Request) -> str | None:
        return tenant_of(request)

    assert call(Guard(app, ring(alice=KEY)), "/who", headers=bearer(KEY)).json() == "alice"
    assert call(Guard(app, None), "/who").json() is None


def test_an_app_without_a_guard_does_not_take_everybody_for_the_same_tenant() -> None:
    with pytest.raises(KeyError):
        tenant_of(Request({"type": "http", "headers": []}))


@pytest.mark.parametrize("kind", ["websocket", "something new"])
def test_what_is_not_http_is_turned_away(access: Access, kind: str) -> None:
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pytest.fail("let in")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    for keys in (access.clients, None):
        asyncio.run(Guard(app, keys)({"type": kind, "path": "/health", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"] * 2


class TestWithoutKeys:
    """Anybody on this machine, with any key or none; but not a page whose host name was made to point here."""

    @pytest.mark.parametrize("headers", [{}, bearer("none"), bearer("sk-whatever"), {"authorization": "x"}])
    def test_any_key_or_none_will_do(self, tmp_path: Path, headers: dict[str, str]) -> None:
        assert not {401, 403} & set(statuses(app_with(Access(), tmp_path), headers, without=OPEN).values())

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]", "[::1]:9"])
    def test_the_machines_own_names(self, tmp_path: Path, host: str) -> None:
        assert call(app_with(Access(), tmp_path), headers={"host": host}).status_code == 503

    @pytest.mark.parametrize("host", ["evil.com", "evil.com:80", "localhost.evil.com", "10.0.0.1:80", "[::2]:1", ":1"])
    def test_another_host_name_is_refused(self, tmp_path: Path, host: str) -> None:
        answer = call(app_with(Access(), tmp_path), headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")

    @pytest.mark.parametrize(
        "origin", ["https://evil.com", "http://localhost:3000", "http://127.0.0.1:8001", "null", ""]
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_no_web_page_may_ask(self, tmp_path: Path, origin: str, method: str) -> None:
        """Also not one that cannot read the answer: a POST without a body needs no permission from a browser."""
        headers = {"origin": origin, "host": "127.0.0.1:8000"}
        answer = call(app_with(Access(), tmp_path), method=method, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")

    @pytest.mark.parametrize("host", ["127.0.0.1:8000", "LOCALHOST", "[::1]:9"])
    def test_but_for_this_servers_own(self, tmp_path: Path, host: str) -> None:
        headers = {"origin": f"http://{host.lower()}", "host": host}
        assert call(app_with(Access(), tmp_path), headers=headers).status_code == 503

    @pytest.mark.parametrize("allowed", ["*", "http://localhost:3000", "app://desktop"])
    def test_but_for_pages_of_an_allowed_origin(self, tmp_path: Path, allowed: str) -> None:
        origin = "https://anywhere.com" if allowed == "*" else allowed
        answer = call(app_with(Access(), tmp_path, allow_origin=(allowed,)), headers={"origin": origin})
        assert answer.status_code == 503


class TestOrigins:
    ORIGIN = "https://app.example.com"

    def preflight(self, app: FastAPI, origin: str) -> httpx.Response:
        asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-y"}
        return call(app, "/v1/chat/completions", "OPTIONS", headers=asked)

    def test_closed_by_default(self, access: Access, tmp_path: Path) -> None:
        app = app_with(access, tmp_path)
        answers = [self.preflight(app, self.ORIGIN), call(app, headers=bearer(KEY) | {"origin": self.ORIGIN})]
        assert [answer.status_code for answer in answers] == [401, 503]
        assert not any("access-control" in name for answer in answers for name in answer.headers)

    def test_open_for_those_named(self, access: Access, tmp_path: Path) -> None:
        app = app_with(access, tmp_path, allow_origin=(self.ORIGIN,))
        assert self.preflight(app, self.ORIGIN).headers["access-control-allow-origin"] == self.ORIGIN
        assert self.preflight(app, "https://evil.com").status_code == 400
        answer = call(app, headers={"origin": self.ORIGIN})
        assert answer.status_code == 401, "a page needs a key like anybody"
        assert answer.headers["access-control-allow-origin"] == self.ORIGIN

    @pytest.mark.parametrize("origin", ["app.example.com", "https://a.com/path", "null", "https://*.a.com", ""])
    def test_what_is_no_origin_is_refused(self, tmp_path: Path, origin: str) -> None:
        with pytest.raises(Exception, match="is not an origin"):
            build_config(model="m", bank=tmp_path, allow_origin=(origin,))
