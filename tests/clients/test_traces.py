"""Traces of real requests, as a collector gets them: the client's trace goes on, ours names the generation."""

import secrets
from typing import Any

import httpx
import pytest

from tests.clients.collector import Collector, Span
from tests.clients.conftest import NAME, SERVICE
from tests.server.process import ServerProcess, stop_server
from tests.server.requests import HEADER, ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def send(server: ServerProcess, path: str, body: dict[str, Any]) -> tuple[httpx.Response, str, str]:
    """The answer, and the trace and the span that the request came from."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{span}-01", "x-request-id": "mine", "tracestate": "vendor=1"}
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=300), trace, span


def pair(collector: Collector, path: str, trace: str) -> tuple[Span, Span]:
    """The server's span of a request, and the engine's below it."""
    ours = collector.wait_for(lambda span: span.trace == trace and span.name == f"POST {path}")
    return ours, collector.wait_for(lambda span: span.trace == trace and span.name == "llm_request")


@pytest.mark.parametrize(
    ("path", "body", "generation"),
    [
        (CHAT, ask(model=NAME), "4"),
        (CHAT, ask(model=f"{NAME}-base", stream=True), "base"),
        (CHAT, ask(seta={"explain": True}), "4"),
        (TEXT, {"prompt": "One, two,", "max_tokens": 8, "temperature": 0}, "4"),
        ("/v1/route", {"prompt": "One, two,"}, "4"),
    ],
)
def test_a_request(
    traced: ServerProcess, collector: Collector, path: str, body: dict[str, Any], generation: str
) -> None:
    answer, trace, span = send(traced, path, body)
    assert answer.status_code == 200 and answer.headers[HEADER] == generation
    ours, engines = pair(collector, path, trace)
    assert (ours.service, ours.parent, engines.parent) == (SERVICE, span, ours.id)
    assert ours.attributes["seta.generation"] == generation
    assert ours.attributes["http.response.status_code"] == 200
    assert engines.attributes["gen_ai.usage.completion_tokens"] >= 1
    assert "mine" not in str(engines.attributes["gen_ai.request.id"])


def test_without_a_trace_one_begins(traced: ServerProcess, collector: Collector) -> None:
    httpx.post(f"{traced.url}{CHAT}", json=ask(model=f"{NAME}@4"), timeout=300)
    ours = collector.wait_for(lambda span: span.name == f"POST {CHAT}" and not span.parent)
    assert pair(collector, CHAT, ours.trace)[1].parent == ours.id


def test_a_refused_request_has_no_span_of_the_engine(traced: ServerProcess, collector: Collector) -> None:
    answer, trace, _ = send(traced, CHAT, ask(model=NAME, temperature=-1))
    assert answer.status_code == 400
    ours = collector.wait_for(lambda span: span.trace == trace)
    assert ours.attributes["http.response.status_code"] == 400 and ours.attributes["seta.generation"] == "4"


def test_no_span_holds_a_prompt_or_an_answer(traced: ServerProcess, collector: Collector) -> None:
    answer, trace, _ = send(traced, CHAT, ask("Say xylophonequartz.", model=NAME))
    pair(collector, CHAT, trace)
    text = answer.json()["choices"][0]["message"]["content"]
    told = str(collector.spans)
    assert "xylophonequartz" not in told and text not in told


def test_the_engines_start_is_traced_too(traced: ServerProcess, collector: Collector) -> None:
    """By the engine's own process, which got the address from ours."""
    assert collector.wait_for(lambda span: span.name == "Worker init").service == SERVICE


def test_a_server_that_is_told_to_end_sends_what_it_has(traced: ServerProcess, collector: Collector) -> None:
    _, trace, _ = send(traced, CHAT, ask(model=NAME))
    stop_server(traced)
    assert {span.name for span in collector.spans if span.trace == trace} == {f"POST {CHAT}", "llm_request"}
