"""Requests: each is counted once, under the right outcome and generation, and its tokens are timed."""

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from server.histogram import Latencies
from server.request_metrics import RequestMeter, RequestMetrics, TokenTimer

CHAT = "/v1/chat/completions"


def run(app: Any, path: str = CHAT, method: str = "POST") -> RequestMetrics:
    requests = RequestMetrics()

    async def drop(message: Any) -> None:
        pass

    scope = {"type": "http", "path": path, "method": method}
    with suppress(KeyError, asyncio.CancelledError):
        asyncio.run(RequestMeter(app, requests)(scope, None, drop))  # type: ignore[arg-type]
    return requests


def answers(status: int, *bodies: tuple[bytes, bool], generation: str | None = "4") -> Any:
    headers = [] if generation is None else [(b"x-seta-generation", generation.encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body, more in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


@pytest.mark.parametrize(
    ("app", "key"),
    [
        (answers(200, (b"{}", False)), ("4", "ok")),
        (answers(200, (b"data: 1", True), (b"", False)), ("4", "ok")),
        (answers(200, (b"{}", False), generation="base"), ("base", "ok")),
        (answers(200, (b"data: 1", True)), ("4", "cancelled")),
        (answers(499, (b"{}", False)), ("4", "cancelled")),
        (answers(200, (b"data: 1", True), (b'data: {"error": 1}', True), (b"", False)), ("4", "error")),
        (answers(500, (b"{}", False), generation=None), ("none", "error")),
        (answers(503, (b"{}", False), generation=None), ("none", "error")),
        (answers(400, (b"{}", False)), ("4", "client_error")),
        (answers(404, (b"{}", False), generation=None), ("none", "client_error")),
        (answers(429, (b"{}", False), generation=None), ("none", "refused")),
    ],
)
def test_every_end_has_its_outcome(app: Any, key: tuple[str, str]) -> None:
    requests = run(app)
    assert requests.outcomes == {key: 1}
    durations = {generation: one.duration.total for generation, one in requests.latencies.items()}
    assert durations == ({key[0]: 1} if key[1] == "ok" else {})


@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError()])
def test_what_is_cut_off_is_an_error(error: BaseException) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    assert run(app).outcomes == {("none", "error"): 1}


@pytest.mark.parametrize(
    ("path", "method"), [("/metrics", "GET"), ("/v1/models", "POST"), (CHAT, "GET"), ("/x", "POST")]
)
def test_other_routes_are_not_counted(path: str, method: str) -> None:
    assert not run(answers(200, (b"", False)), path, method).outcomes


def output(num_tokens: dict[int, int], finished: bool = False, metrics: Any = None) -> Any:
    completions = [SimpleNamespace(index=i, token_ids=[0] * n) for i, n in num_tokens.items()]
    return SimpleNamespace(outputs=completions, finished=finished, metrics=metrics)


class TestTokenTimer:
    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """A clock that stands still: monotonic time, and Unix time 1000 s later."""
        at = [100.0]
        clock = SimpleNamespace(monotonic=lambda: at[0], time=lambda: at[0] + 1000)
        monkeypatch.setattr("server.request_metrics.time", clock)
        return at

    def test_a_stream(self, now: list[float]) -> None:
        latencies = Latencies()
        timer = TokenTimer(latencies)
        for seconds, num_tokens in [(0.5, 1), (0.25, 1), (0.5, 0), (0.5, 2)]:
            now[0] += seconds
            timer.see(output({0: num_tokens}))
        now[0] += 9
        timer.see(output({0: 0}, finished=True))
        assert (latencies.first_token.total, latencies.first_token.sum) == (1, 0.5)
        assert (latencies.between_tokens.total, latencies.between_tokens.sum) == (3, 0.25 + 2 * 0.5)

    def test_several_answers_side_by_side(self, now: list[float]) -> None:
        latencies = Latencies()
        timer = TokenTimer(latencies)
        for index in (0, 1, 0, 1):
            now[0] += 1
            timer.see(output({index: 1}))
        assert (latencies.first_token.total, latencies.first_token.sum) == (1, 1.0)
        assert (latencies.between_tokens.total, latencies.between_tokens.sum) == (2, 4.0)

    def test_an_answer_in_one_piece(self, now: list[float]) -> None:
        """vLLM stamps arrival in Unix time and tokens in the engine's own monotonic time."""
        latencies = Latencies()
        timer = TokenTimer(latencies)
        stamps = SimpleNamespace(
            num_generation_tokens=5,
            arrival_time=1100.25,
            first_token_latency=0.5,
            first_token_ts=7.0,
            last_token_ts=9.0,
        )
        now[0] += 10
        timer.see(output({0: 5}, finished=True, metrics=stamps))
        assert (latencies.first_token.total, latencies.first_token.sum) == (1, pytest.approx(0.75))
        assert (latencies.between_tokens.total, latencies.between_tokens.sum) == (4, 2.0)

    def test_the_wait_before_the_engine_counts(self, now: list[float]) -> None:
        latencies = Latencies()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            now[0] += 3  # queued
            timer = TokenTimer(latencies)
            now[0] += 1
            timer.see(output({0: 1}))
            await answers(200, (b"", False))(scope, receive, send)

        requests = run(app)
        assert latencies.first_token.sum == 4.0
        assert requests.of("4").duration.sum == 4.0


def test_timing_a_token_costs_microseconds() -> None:
    """No time is asserted here; docs/log.md has the measurement. Many tokens leave nothing behind but counts."""
    latencies = Latencies()
    timer = TokenTimer(latencies)
    one = output({0: 1})
    start = time.monotonic()
    for _ in range(1000):
        timer.see(one)
    assert latencies.between_tokens.total == 999
    assert latencies.between_tokens.sum <= time.monotonic() - start
