"""A server that does what each prompt tells it to, and writes down when it did: `python -m tests.loadtest.scripted`.

The last message's text is a JSON `Script`. Answers are streamed as OpenAI's chat API streams them. It is a process of
its own, so that what it does never waits for the client that is tested. `GET /log` gives, for each answered request,
the moment it was read and the moments at which output was written.
"""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
MODEL = "scripted"
ADMIN_KEY = "adm1n-k3y"
SERVING = "whichever serves"


@dataclass(frozen=True)
class Script:
    """Seconds before each piece of output, and what goes wrong: a status, a cut or an error after `broken_after`."""

    delays: tuple[float, ...] = (0.0, 0.0)
    text: str = "word "
    generation: str | None = "3"
    status: int = 200
    broken_after: int | None = None
    how: str = "cut"
    key: str | None = None
    usage: bool = True

    @property
    def prompt(self) -> str:
        return json.dumps(asdict(self))


class Server:
    """Keeps its log, and which generation serves: 3 at first; 4 and 5 can be activated, 9 cannot."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.serving, self.previous = 3, 2

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        read = time.perf_counter()
        if head.startswith("get /log"):
            return await _whole(writer, 200, self.log)
        if "/admin/v1/" in head:
            return await _whole(writer, *self._admin(head, json.loads(body) if body else {}))
        if head.startswith("get /v1/models"):
            return await _whole(writer, 200, {"data": [{"id": MODEL}]})
        request = json.loads(body)
        script = Script(**json.loads(request["messages"][-1]["content"]))
        if script.key is not None and f"authorization: bearer {script.key}" not in head:
            return await _whole(writer, 401, {"error": {"message": f"wrong key; got {head}"}})
        if script.status != 200:
            return await _whole(writer, script.status, {"error": {"message": "as scripted"}})
        return await self._answer(writer, script, read)

    def _admin(self, head: str, order: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if f"authorization: bearer {ADMIN_KEY}" not in head:
            return 401, {"error": {"message": f"wrong key; got {head}"}}
        if head.startswith("get /admin/v1/generations "):
            return 200, {"serving": self.serving, "generations": [{"generation": one} for one in (2, 3, 4, 5, 9)]}
        if order["expected_generation"] != self.serving:
            return 409, {"error": {"message": f"generation {self.serving} serves", "code": "generation_mismatch"}}
        wanted = self.previous if head.startswith("post /admin/v1/rollback ") else order["generation"]
        if wanted == 9:
            return 422, {"error": {"message": "generation 9 is not whole"}}
        self.serving, self.previous = wanted, self.serving
        return 200, {"serving": self.serving, "previous": self.previous, "seconds": 0.0}

    async def _answer(self, writer: asyncio.StreamWriter, script: Script, read: float) -> bool:
        written: list[float] = []
        generation = self.serving if script.generation == SERVING else script.generation
        header = f"x-seta-generation: {generation}\r\n" if generation else ""
        writer.write(f"{HEAD}{header}\r\n".encode())
        _event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for index, delay in enumerate(script.delays):
            await asyncio.sleep(delay)
            if index == script.broken_after:
                return await _break(writer, script.how)
            finish = "stop" if index == len(script.delays) - 1 else None
            _event(writer, {"choices": [{"delta": {"content": script.text}, "finish_reason": finish}]})
            await writer.drain()
            written.append(time.perf_counter())
        if script.usage:
            counts = {"prompt_tokens": 7, "completion_tokens": len(script.delays)}
            _event(writer, {"choices": [], "usage": counts})
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        self.log.append({"read": read, "written": written, "end": time.perf_counter()})
        return True


async def _break(writer: asyncio.StreamWriter, how: str) -> bool:
    if how == "error":
        _event(writer, {"error": {"message": "as scripted", "code": "engine_dead"}})
    elif how == "garbage":
        _chunk(writer, b"data: {nonsense\n\n")
    elif how == "hang":
        await asyncio.sleep(3600)
    elif how == "early end":
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return False


def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    _chunk(writer, f"data: {json.dumps(event)}\n\n".encode())


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _whole(writer: asyncio.StreamWriter, status: int, content: Any) -> bool:
    body = json.dumps(content).encode()
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return True


async def _main() -> None:
    server = await asyncio.start_server(Server().serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def scripted_server() -> Iterator[str]:
    """The URL of a running one."""
    process = subprocess.Popen([sys.executable, "-m", "tests.loadtest.scripted"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def log_of(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/log", timeout=10) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found


if __name__ == "__main__":
    asyncio.run(_main())
