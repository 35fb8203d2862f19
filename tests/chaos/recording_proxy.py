"""A proxy that writes down what a load generator was given: `python -m tests.chaos.recording_proxy PORT URL FILE`.

Each answered completion becomes a line of FILE: when its request came and when each piece of its answer went out, on
this process's clock. It is a process of its own, so that it takes no time from the generator that it watches.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

UPSTREAM: web.AppKey[str] = web.AppKey("upstream", str)
FILE: web.AppKey[Path] = web.AppKey("file", Path)
SESSION: web.AppKey[aiohttp.ClientSession] = web.AppKey("session", aiohttp.ClientSession)


async def forward(request: web.Request) -> web.StreamResponse:
    came = time.perf_counter()
    asked = await request.read()
    url = request.app[UPSTREAM] + request.path
    rest, outputs = b"", []
    async with request.app[SESSION].request(request.method, url, data=asked, headers=passed(request)) as answer:
        response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
            now = time.perf_counter()
            *lines, rest = (rest + piece).split(b"\n")
            outputs += [now] * sum(map(has_output, lines))
        await response.write_eof()
    if outputs:
        line = {"asked": json.loads(asked), "came": came, "outputs": outputs}
        with request.app[FILE].open("a") as file:
            file.write(json.dumps(line) + "\n")
    return response


def has_output(line: bytes) -> bool:
    """Whether it is an event of a streamed completion with a token; the last one has only the usage."""
    return line.startswith(b"data: {") and bool(json.loads(line[len("data: ") :]).get("choices"))


def passed(request: web.Request) -> dict[str, str]:
    kept = ("content-type", "authorization", "accept-encoding")
    return {name: value for name, value in request.headers.items() if name.lower() in kept}


async def open_session(app: web.Application) -> Any:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        app[SESSION] = session
        yield


def main() -> None:
    port, url, file = sys.argv[1:]
    app = web.Application()
    app[UPSTREAM], app[FILE] = url, Path(file)
    app.cleanup_ctx.append(open_session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None)


if __name__ == "__main__":
    main()
