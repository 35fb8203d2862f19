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
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .histogram import Latencies
from .task_metrics import BASE, Outcome, TaskMetrics, Tracked

PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
UNBOUND = "none"

_ERROR_EVENT = b'data: {"error":'
_current: ContextVar["_Request | None"] = ContextVar("request", default=None)


class _Request:
    """A request that is being answered, and what the engine got of it."""

    def __init__(self) -> None:
        self.arrived = time.monotonic()
        self.tracked: list[Tracked] = []


class RequestMetrics:
    """Counted in the event loop. Generations are labels here: their numbers as text, "base", "none"."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.latencies: dict[str, Latencies] = {}
        self.tasks = TaskMetrics()

    def of(self, generation: str) -> Latencies:
        found = self.latencies.get(generation)
        if found is None:
            found = self.latencies[generation] = Latencies()
        return found

    def timer(self, generation: str, request_id: str) -> "TokenTimer":
        """For a request that goes to the engine under this id, from whatever route."""
        request = _current.get()
        if request is None:
            return TokenTimer(self.of(generation))
        tracked = self.tasks.track(request_id, generation)
        request.tracked.append(tracked)
        return TokenTimer(self.of(generation), tracked)

    def keep_only(self, generations: Collection[str]) -> None:
        """Forget those that have left memory."""
        self.tasks.keep_only(generations)
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
        request = _Request()
        _current.set(request)  # each request is served in a context of its own
        answer = _Answer(send)
        try:
            await self.app(scope, receive, answer.send)
        except BaseException:
            answer.is_broken = True
            raise
        finally:
            seconds = time.monotonic() - request.arrived
            self._requests.outcomes[answer.generation, answer.outcome] += 1
            if answer.outcome == "ok":
                self._requests.of(answer.generation).duration.observe(seconds)
            self._requests.tasks.ended(request.tracked, answer.outcome, seconds)


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
    """Times one request's tokens, for its generation and, if it is tracked, for its task.

    `see` is called with each of vLLM's outputs (`RequestOutput`).

    A stream brings its tokens as they come. The output of a request that is not streamed comes once, at the end, with
    the engine's own time stamps: then every gap counts as the request's mean gap.
    """

    def __init__(self, latencies: Latencies, tracked: Tracked | None = None) -> None:
        self._latencies = latencies
        self._tracked = tracked
        request = _current.get()
        self._arrived = time.monotonic() if request is None else request.arrived
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
            self._first_token(now - self._arrived)
        last = self._last.get(index)
        if last is not None:
            self._between_tokens((now - last) / num_tokens, num_tokens)
        self._last[index] = now

    def _see_whole(self, output: Any) -> None:
        stamps = output.metrics
        if stamps is None or not stamps.num_generation_tokens:
            return
        first_token_at = stamps.arrival_time + stamps.first_token_latency - time.time() + time.monotonic()
        self._first_token(first_token_at - self._arrived)
        num_gaps = stamps.num_generation_tokens - 1
        if num_gaps > 0:
            mean = (stamps.last_token_ts - stamps.first_token_ts) / num_gaps
            self._between_tokens(mean, num_gaps)

    def _first_token(self, seconds: float) -> None:
        self._latencies.first_token.observe(seconds)
        if self._tracked is not None:
            self._tracked.latencies.first_token.observe(seconds)

    def _between_tokens(self, seconds: float, num_gaps: int) -> None:
        self._latencies.between_tokens.observe(seconds, num_gaps)
        if self._tracked is not None:
            self._tracked.latencies.between_tokens.observe(seconds, num_gaps)
