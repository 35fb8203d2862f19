"""OpenAI's own client: what it sends is understood, what it gets it can read, and what fails it raises as it should.

Beside `test_http` (chat, streams, logprobs, models) and `test_bad_input`. The first half asks the real server for a few
tokens, the second an app without an engine, on a real listener.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam

from server.access import Access
from server.admission import Admission, Bounds
from server.app import build_app
from server.config import build_config
from server.keys import KeyRing, line_for
from server.service import Service
from tests.server.house import House
from tests.server.listener import listening
from tests.server.process import NAME
from tests.server.requests import ask

BASE = f"{NAME}-base"
COUNT = "Count: one, two, three,"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
KEY, ADMIN_KEY = "seta-alice-key", "seta-root-key"


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**(ask() | {"model": BASE} | fields))


class TestAnswers:
    def test_a_streams_usage_comes_last_and_is_that_of_the_whole(self, client: openai.OpenAI) -> None:
        whole = chat(client, max_tokens=2).usage
        *events, last = list(chat(client, max_tokens=2, stream=True, stream_options={"include_usage": True}))
        assert all(event.usage is None and event.choices for event in events)
        assert last.choices == []
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.prompt_tokens, 2)
        assert last.usage.total_tokens == whole.total_tokens == whole.prompt_tokens + 2

    def test_max_completion_tokens(self, client: openai.OpenAI) -> None:
        answer = chat(client, max_tokens=None, max_completion_tokens=2)
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (2, "length")

    def test_stop_ends_the_answer_and_is_not_in_it(self, client: openai.OpenAI) -> None:
        plain = client.completions.create(model=BASE, prompt=COUNT, max_tokens=6, temperature=0).choices[0].text
        word = plain.split()[1].strip(",")
        answer = client.completions.create(model=BASE, prompt=COUNT, max_tokens=6, temperature=0, stop=[word, "?!"])
        assert answer.choices[0].text == plain[: plain.index(word)]
        assert answer.choices[0].finish_reason == "stop"

    def test_n_answers_are_numbered_and_a_seed_repeats_them(self, client: openai.OpenAI) -> None:
        first, again = (chat(client, n=3, seed=7, temperature=1.5, max_tokens=2).choices for _ in range(2))
        texts = [[choice.message.content for choice in choices] for choices in (first, again)]
        assert [choice.index for choice in first] == [0, 1, 2]
        assert texts[0] == texts[1] and len(set(texts[0])) > 1

    def test_logprobs_in_a_stream(self, client: openai.OpenAI) -> None:
        events = list(chat(client, max_tokens=2, stream=True, logprobs=True, top_logprobs=2))
        found = [choice.logprobs for event in events for choice in event.choices if choice.logprobs is not None]
        tokens = [token for logprobs in found for token in logprobs.content or []]
        assert len(tokens) == 2 and all(len(token.top_logprobs) == 2 for token in tokens)
        assert all(token.logprob == pytest.approx(token.top_logprobs[0].logprob) for token in tokens)

    def test_logprobs_of_a_completion(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model=BASE, prompt=COUNT, max_tokens=2, temperature=0, logprobs=2)
        found = answer.choices[0].logprobs
        assert found is not None and found.tokens is not None and found.top_logprobs is not None
        assert "".join(found.tokens) == answer.choices[0].text
        assert [len(top) for top in found.top_logprobs] == [2, 2]

    def test_a_json_schema_is_kept_to(self, client: openai.OpenAI) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True}}
        answer = chat(client, messages=ask("Is water wet?")["messages"], max_tokens=24, response_format=schema)
        assert json.loads(answer.choices[0].message.content)["answer"] in ("yes", "no")

    def test_several_prompts_in_one_completion(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model=BASE, prompt=[COUNT, "One"], max_tokens=1, temperature=0)
        assert [choice.index for choice in answer.choices] == [0, 1]

    def test_the_asynchronous_client(self, server: str) -> None:
        async def work() -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
                wanted: dict[str, Any] = ask(max_tokens=3) | {"model": BASE}
                whole, stream = await asyncio.gather(
                    client.chat.completions.create(**wanted), client.chat.completions.create(stream=True, **wanted)
                )
                parts = [event.choices[0].delta.content or "" async for event in stream]
                return [whole.choices[0].message.content or "", "".join(parts)]

        whole, streamed = asyncio.run(work())
        assert whole and whole == streamed


class TestTools:
    @pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
    def test_without_a_parser_the_option_is_named(self, client: openai.OpenAI, choice: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="--tool-call-parser"):
            chat(client, tools=[TOOL], tool_choice=choice)

    def test_tools_that_may_not_be_used_are_no_error(self, client: openai.OpenAI) -> None:
        message = chat(client, tools=[TOOL], tool_choice="none", max_tokens=2).choices[0].message
        assert message.content and not message.tool_calls


def ring(name: str, key: str) -> KeyRing:
    return KeyRing("keys", lambda: line_for(name, key))


@pytest.fixture
def service(house: House, tmp_path: Path) -> Service:
    """A server with keys whose one client may have one request running and one waiting."""
    access = Access(clients=ring("alice", KEY), admins=ring("root", ADMIN_KEY))
    asyncio.run(house.operations.start())
    config = build_config(model="m", bank=tmp_path)
    service = Service(config, access, serving=house.service.serving)
    assert service.serving is not None
    object.__setattr__(service.serving, "admission", Admission(Bounds(1, None, 2, 1)))
    return service


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with listening(build_app(service), service.config) as listener:
        yield f"http://127.0.0.1:{listener.port}/v1"


def client_with(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)


class TestErrors:
    def test_a_wrong_key_and_the_other_listeners(self, url: str) -> None:
        with pytest.raises(openai.AuthenticationError) as unknown:
            client_with(url, "seta-wrong").models.list()
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError) as admin:
            client_with(url, ADMIN_KEY).models.list()
        assert admin.value.code == "wrong_listener"

    def test_an_unknown_model_and_an_unknown_route(self, url: str) -> None:
        with pytest.raises(openai.NotFoundError) as model:
            chat(client_with(url), model="gpt-5")
        assert (model.value.code, model.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError) as route:
            client_with(url).embeddings.create(model=NAME, input="a")
        assert route.value.code == "not_found"

    def test_too_many_requests_say_when_to_come_back(self, url: str, service: Service) -> None:
        assert service.serving is not None
        for _ in range(2):
            service.serving.admission.enter("alice")
        with pytest.raises(openai.RateLimitError) as full:
            chat(client_with(url))
        assert full.value.code == "key_queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1

    def test_a_server_that_loads(self, url: str, service: Service) -> None:
        service.serving = None
        with pytest.raises(openai.InternalServerError) as loading:
            chat(client_with(url))
        assert (loading.value.status_code, loading.value.code) == (503, "loading")
