"""One request and everything a server can do to it."""

import asyncio
import time

import pytest

from loadtest.client import Client
from loadtest.errors import LoadTestError
from loadtest.outcome import Outcome
from loadtest.settings import Settings
from loadtest.workload import Request
from tests.loadtest.scripted import MODEL, Script
from tests.server.process import free_port

KEY = "s3cret-k3y"


def ask(url: str, script: Script, *, answer: str | None = None, late: float = 0.0, **options: object) -> Outcome:
    async def run() -> Outcome:
        settings = Settings(scenario="steady", url=url, **options)  # type: ignore[arg-type]
        async with Client(settings, MODEL, KEY) as client:
            request = Request("foods", [{"role": "user", "content": script.prompt}], 8, answer)
            return await client.ask(request, time.perf_counter() - late)

    return asyncio.run(run())


def test_an_answer_and_its_times(scripted: str) -> None:
    outcome = ask(scripted, Script(delays=(0.2, 0.1, 0.1)), answer=" word word word")
    assert outcome.error is None
    assert outcome.first is not None and outcome.first - outcome.due >= 0.2
    assert len(outcome.gaps) == 2 and all(gap > 0.05 for gap in outcome.gaps)
    assert outcome.end - outcome.due >= 0.4
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.generation) == (7, 3, "3")
    assert outcome.is_right is True
    assert outcome.text == "word word word "


def test_latency_counts_from_the_due_time(scripted: str) -> None:
    outcome = ask(scripted, Script(), late=5.0)
    assert outcome.first is not None and outcome.first - outcome.due >= 5.0
    assert outcome.first - outcome.sent < 5.0


def test_a_wrong_answer_and_an_unknown_one(scripted: str) -> None:
    assert ask(scripted, Script(), answer="other").is_right is False
    assert ask(scripted, Script()).is_right is None


def test_a_server_that_counts_no_tokens_and_names_no_generation(scripted: str) -> None:
    outcome = ask(scripted, Script(delays=(0.0, 0.0, 0.0), usage=False, generation=None))
    assert (outcome.error, outcome.output_tokens, outcome.generation) == (None, 3, None)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(status=429), "http 429"),
        (Script(status=500), "http 500"),
        (Script(broken_after=1, how="error"), "error in stream"),
        (Script(broken_after=1, how="garbage"), "bad stream"),
        (Script(broken_after=1, how="cut"), "disconnected"),
        (Script(broken_after=1, how="early end"), "cut off"),
        (Script(broken_after=0, how="early end"), "cut off"),
        (Script(delays=()), "cut off"),
    ],
)
def test_what_goes_wrong_has_a_kind(scripted: str, script: Script, kind: str) -> None:
    outcome = ask(scripted, script, answer="word word")
    assert outcome.error == kind
    assert outcome.is_right is None


def test_a_server_that_hangs_is_a_timeout(scripted: str) -> None:
    outcome = ask(scripted, Script(broken_after=1, how="hang"), timeout_seconds=0.5)
    assert outcome.error == "timeout"
    assert outcome.generation == "3"


def test_nobody_listens() -> None:
    assert ask(f"http://127.0.0.1:{free_port()}", Script()).error == "cannot connect"


def test_the_key_is_sent_and_never_shown(scripted: str) -> None:
    assert ask(scripted, Script(key=KEY)).error is None
    refused = ask(scripted, Script(key="another"))  # the scripted server repeats the head of the request
    assert refused.error == "http 401"
    assert "wrong key" in refused.detail and KEY not in refused.detail


def test_the_body_of_either_api() -> None:
    request = Request("t", [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], 5)
    chat = Client(Settings(scenario="steady", extra_body='{"temperature": 1, "stream": false}'), "m")  # type: ignore[arg-type]
    assert chat.body(request) == {
        "model": "m",
        "messages": request.messages,
        "max_tokens": 5,
        "temperature": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    plain = Client(Settings(scenario="steady", api="completions"), "m")
    assert plain.body(request)["prompt"] == "u"
    assert plain.endpoint == "http://127.0.0.1:8000/v1/completions"


def test_the_first_model(scripted: str) -> None:
    async def first(url: str) -> str:
        async with Client(Settings(scenario="steady", url=url), "") as client:
            return await client.first_model()

    assert asyncio.run(first(scripted)) == MODEL
    with pytest.raises(LoadTestError, match="cannot connect .*--url names the server"):
        asyncio.run(first(f"http://127.0.0.1:{free_port()}"))
