"""What became of every generating request and how long it took, by the generation that answered it.

    arrival ──► our queue, vLLM's queue, prefill ──► first token ──► ... tokens ... ──► last byte sent
    └──────────── time to first token ─────────────┘└─ time between tokens ─┘
    └────────────────────────────── duration of the request ───────────────────────────────────┘

`RequestMeter` (ASGI middleware) sees a request's beginning, its outcome and its end; `TokenTimer` sees its tokens as
the engine hands them out. Labels come from the server alone: a request that was not bound to a generation is "none".
"""

import time
from collections import Counter
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .histogram import Histogram

Outcome = Literal["ok", "client_error", "refused", "error", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "client_error", "refused", "error", "cancelled")
PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
BASE, UNBOUND = "base", "none"

_ERROR_EVENT = b'data: {"error":'
_arrived: ContextVar[float | None] = ContextVar("arrived", default=None)


class GenerationLatencies:
    """Seconds, one set of histograms for each generation."""

    def __init__(self) -> None:
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.duration = Histogram()


class RequestMetrics:
    """Counted in the event loop. Generations are labels here: their numbers as text, "base", "none"."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.latencies: dict[str, GenerationLatencies] = {}

    def of(self, generation: str) -> GenerationLatencies:
        found = self.latencies.get(generation)
        if found is None:
            found = self.latencies[generation] = GenerationLatencies()
        return found

    def keep_only(self, generations: Collection[str]) -> None:
        """Forget those that have left memory."""
        self.latencies = {key: value for key, value in self.latencies.items() if key in generations}
        self.outcomes = Counter({key: value for key, value in self.outcomes.items() if key[0] in generations})


def label(generation: int | None) -> str:
    return BASE if generation is None else str(generation)


class RequestMeter:
    """Counts each request of `PATHS` once, when it has ended."""

    def __init__(self, app: ASGIApp, requests: RequestMetrics) -> None:
        self.app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        arrived = time.monotonic()
        _arrived.set(arrived)  # each request is served in a context of its own
        answer = _Answer(send)
        try:
            await self.app(scope, receive, answer.send)
        except BaseException:
            answer.is_broken = True
            raise
        finally:
            self._requests.outcomes[answer.generation, answer.outcome] += 1
            if answer.outcome == "ok":
                self._requests.of(answer.generation).duration.observe(time.monotonic() - arrived)


class _Answer:
    """What has been sent of one answer."""

    def __init__(self, send: Send) -> None:
        self.generation = UNBOUND
        self.is_broken = False
        self._status = 0
        self._is_complete = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self.generation = Headers(raw=message["headers"]).get("x-seta-generation", UNBOUND)
        elif message["type"] == "http.response.body":
            self.is_broken |= message.get("body", b"").startswith(_ERROR_EVENT)  # the error that ends a stream
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    @property
    def outcome(self) -> Outcome:
        if self.is_broken or self._status >= 500:
            return "error"
        if self._status == 499 or not self._is_complete:
            return "cancelled"
        if self._status == 429:
            return "refused"
        return "client_error" if self._status >= 400 else "ok"


class TokenTimer:
    """Times one request's tokens. `see` is called with each of vLLM's outputs (`RequestOutput`).

    A stream brings its tokens as they come. The output of a request that is not streamed comes once, at the end, with
    the engine's own time stamps: then every gap counts as the request's mean gap.
    """

    def __init__(self, latencies: GenerationLatencies) -> None:
        self._latencies = latencies
        arrived = _arrived.get()
        self._arrived = time.monotonic() if arrived is None else arrived
        self._last: dict[int, float] = {}

    def see(self, output: Any) -> None:
        now = time.monotonic()
        if output.finished and not self._last:
            return self._see_whole(output)
        for completion in output.outputs:
            if num_tokens := len(completion.token_ids):
                self._see_tokens(completion.index, num_tokens, now)

    def _see_tokens(self, index: int, num_tokens: int, now: float) -> None:
        if not self._last:
            self._latencies.first_token.observe(now - self._arrived)
        last = self._last.get(index)
        if last is not None:
            self._latencies.between_tokens.observe((now - last) / num_tokens, num_tokens)
        self._last[index] = now

    def _see_whole(self, output: Any) -> None:
        stamps = output.metrics
        if stamps is None or not stamps.num_generation_tokens:
            return
        first_token_at = stamps.arrival_time + stamps.first_token_latency - time.time() + time.monotonic()
        self._latencies.first_token.observe(first_token_at - self._arrived)
        num_gaps = stamps.num_generation_tokens - 1
        if num_gaps > 0:
            mean = (stamps.last_token_ts - stamps.first_token_ts) / num_gaps
            self._latencies.between_tokens.observe(mean, num_gaps)
