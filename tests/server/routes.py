"""Every route of an app, walked from its own table: what a caller without the right key gets."""

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping

import httpx
from fastapi import FastAPI
from starlette.routing import Route

PROBES = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY")


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, parameters filled in, each also with methods it does not have."""
    for route in app.routes:
        assert isinstance(route, Route), f"{route!r}: a mount or a WebSocket cannot be walked; test it on its own"
        assert route.methods
        for method in (*PROBES, *(route.methods - set(PROBES))):
            yield method, re.sub(r"{[^}]*}", "x", route.path)


def statuses(
    app: FastAPI, headers: Mapping[str, str], host: str = "127.0.0.1", without: Collection[str] = ()
) -> dict[tuple[str, str], int]:
    """The status each route answers to a request with these headers and an empty body, but for paths in `without`."""

    async def walk() -> dict[tuple[str, str], int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            return {
                (method, path): (await http.request(method, path, headers=headers)).status_code
                for method, path in routes_of(app)
                if path not in without
            }

    return asyncio.run(walk())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def assert_every_route_needs_a_key(app: FastAPI, key: str, other_key: str, open_paths: set[str]) -> None:
    """`key` opens this listener, `other_key` the other one. Whatever is not in `open_paths` answers neither a caller
    without a key (401), nor one with a wrong key (401), nor one with the other listener's (403)."""
    refusals: list[tuple[Mapping[str, str], int]] = [
        ({}, 401),
        (bearer("seta-wrong"), 401),
        (bearer(key.swapcase()), 401),
        ({"authorization": key}, 401),
        ({"authorization": f"Basic {key}"}, 401),
        ({"x-api-key": key, "api-key": key}, 401),
        (bearer(other_key), 403),
    ]
    for headers, status in refusals:
        closed = statuses(app, headers, without=open_paths)
        assert closed and set(closed.values()) == {status}, (headers, closed)
    found = {route: status for route, status in statuses(app, {}).items() if route[1] in open_paths}
    assert {path for _, path in found} >= open_paths, "an open path is not a route"
    assert not {401, 403} & set(found.values())
    assert not {401, 403} & set(statuses(app, bearer(key), without=open_paths).values())
