"""One streamed request to an OpenAI-compatible server, and what was seen of it.

aiohttp, because the client shares its machine with the server more often than not: it costs a quarter of the
processor time of httpx for each event of a stream (docs/loadtest.md).
"""

from __future__ import annotations

import asyncio
import json
import time
from types import TracebackType
from typing import Any, Self

import aiohttp

from .errors import LoadTestError
from .outcome import Outcome
from .settings import Settings
from .sse import BadStream, Events, chunk_of
from .workload import Request

CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 2.0  # less than any server's, so that no request goes out on a connection that is being closed
MAX_DETAIL_CHARS = 200
GENERATION_HEADER = "x-seta-generation"


class Failure(Exception):
    """Ends a request early; `kind` groups equal failures."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


class Client:
    """Sends requests to one model of one server. Use as an async context manager."""

    def __init__(self, settings: Settings, model: str, api_key: str | None = None) -> None:
        self.settings = settings
        self.model = model
        self._key = api_key
        path = "/v1/chat/completions" if settings.api == "chat" else "/v1/completions"
        self.endpoint = settings.url + path

    async def __aenter__(self) -> Self:
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_seconds, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def first_model(self) -> str:
        """The first name in `/v1/models`. Raises LoadTestError."""
        url = f"{self.settings.url}/v1/models"
        try:
            async with self._session.get(url) as response:
                text = await response.text()
                if response.status != 200:
                    raise LoadTestError(f"{url} answered {response.status}: {self._shown(text)}")
                return str(json.loads(text)["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise LoadTestError(f"{url}: {_kind(error)} ({self._shown(str(error))}); --url names the server") from error
        except (ValueError, LookupError, TypeError) as error:
            raise LoadTestError(f"{url} lists no model; name one with --model") from error

    async def ask(self, request: Request, due: float) -> Outcome:
        """Send it now and read the answer to its end. Never raises for what the server does."""
        outcome = Outcome(request.task, due, time.perf_counter())
        try:
            await self._stream(request, outcome)
        except Failure as failure:
            outcome.error, outcome.detail = failure.kind, self._shown(failure.detail)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            outcome.error, outcome.detail = _kind(error), self._shown(str(error))
        except BadStream as error:
            outcome.error, outcome.detail = "bad stream", self._shown(str(error))
        outcome.end = time.perf_counter()
        if request.answer is not None and outcome.error is None:
            outcome.is_right = outcome.text.strip() == request.answer.strip()
        return outcome

    def body(self, request: Request) -> dict[str, Any]:
        """What is posted: greedy and streamed, unless `extra_body` says otherwise."""
        chat = self.settings.api == "chat"
        says = {"messages": request.messages} if chat else {"prompt": request.messages[-1]["content"]}
        usual = {"max_tokens": request.max_tokens, "temperature": 0}
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **says, **usual, **self.settings.extra_body, **streamed}

    async def _stream(self, request: Request, outcome: Outcome) -> None:
        async with self._session.post(self.endpoint, json=self.body(request), allow_redirects=False) as response:
            outcome.generation = response.headers.get(GENERATION_HEADER)
            if response.status != 200:
                raise Failure(f"http {response.status}", await response.text(errors="replace"))
            reader = _Reader(outcome)
            async for piece in response.content.iter_any():
                reader.read(piece)
            reader.finish()

    def _shown(self, text: str) -> str:
        """A detail that can be printed: short, on one line, and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        text = " ".join(text.split())
        return text if len(text) <= MAX_DETAIL_CHARS else text[:MAX_DETAIL_CHARS] + "…"


class _Reader:
    """Fills an outcome from the pieces of its stream."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.events = Events()
        self.text: list[str] = []
        self.is_finished = False
        self.previous = 0.0

    def read(self, piece: bytes) -> None:
        now = time.perf_counter()
        for event in self.events.feed(piece):
            if "error" in event:
                raise Failure("error in stream", json.dumps(event["error"]))
            chunk = chunk_of(event)
            self.is_finished |= chunk.is_last
            if chunk.has_output:
                self._output(chunk.text, now)
            self.outcome.prompt_tokens = chunk.prompt_tokens or self.outcome.prompt_tokens
            self.outcome.output_tokens = chunk.output_tokens or self.outcome.output_tokens

    def _output(self, text: str, now: float) -> None:
        self.text.append(text)
        if self.outcome.first is None:
            self.outcome.first = now
        else:
            self.outcome.gaps.append(now - self.previous)
        self.previous = now

    def finish(self) -> None:
        """Raises Failure where the stream ended before the answer did."""
        outcome = self.outcome
        outcome.text = "".join(self.text)
        outcome.output_tokens = outcome.output_tokens or len(self.text)
        if not (self.is_finished or self.events.is_done) or outcome.first is None:
            raise Failure("cut off", f"the stream ended after {len(self.text)} events with output")


def _kind(error: Exception) -> str:
    """A few words for what went wrong on the way, the same for equal causes."""
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot connect"
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionResetError)):
        return "disconnected"
    return type(error).__name__
