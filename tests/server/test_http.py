"""The real server over the real small model, through OpenAI's own client and through plain HTTP."""

import re
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.bank import Bank
from tests.server.process import NAME, REPO, ServerProcess
from tests.server.requests import HEADER, QUESTION, answer_of, ask, post


class TestModels:
    def test_names(self, client: openai.OpenAI, current: int) -> None:
        assert [model.id for model in client.models.list()] == [NAME, f"{NAME}@{current}", f"{NAME}-base"]

    def test_one_model(self, client: openai.OpenAI, current: int, demo_bank: Path) -> None:
        model = client.models.retrieve(f"{NAME}@{current}")
        assert (model.id, model.owned_by) == (f"{NAME}@{current}", "seta")
        assert model.created == Bank.open(demo_bank).manifest().created.timestamp()

    def test_no_path_of_the_server(self, http: httpx.Client) -> None:
        shown = http.get("/v1/models").text
        assert "/" not in shown
        assert '"max_model_len":2048' in shown


class TestChat:
    def test_answer_and_generation(self, client: openai.OpenAI, current: int) -> None:
        raw = client.chat.completions.with_raw_response.create(model=NAME, **ask())
        assert raw.headers[HEADER] == str(current)
        answer = raw.parse()
        assert answer.model == f"{NAME}@{current}"
        assert answer.choices[0].message.content
        assert answer.usage is not None and answer.usage.completion_tokens <= 8

    def test_the_base_model_answers_as_itself(self, client: openai.OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(model=f"{NAME}-base", **ask())
        assert raw.headers[HEADER] == "base"
        answer = raw.parse()
        assert answer.model == f"{NAME}-base"
        assert answer.choices[0].message.content

    def test_stream_is_the_same_text(self, client: openai.OpenAI, current: int) -> None:
        whole = client.chat.completions.create(model=NAME, **ask()).choices[0]
        with client.chat.completions.with_streaming_response.create(model=NAME, stream=True, **ask()) as response:
            assert response.headers[HEADER] == str(current)
            assert response.headers["content-type"].startswith("text/event-stream")
        chunks = list(client.chat.completions.create(model=NAME, stream=True, **ask()))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
        assert chunks[-1].choices[0].finish_reason == whole.finish_reason

    def test_stream_ends_as_openais_does(self, http: httpx.Client) -> None:
        response = post(http, stream=True, stream_options={"include_usage": True})
        events = response.text.strip().split("\n\n")
        assert all(event.startswith("data: ") for event in events)
        assert events[-1] == "data: [DONE]"
        assert '"usage":{' in events[-2]

    def test_all_names_of_one_generation_agree(self, http: httpx.Client, current: int) -> None:
        answers = {answer_of(post(http, model=name)) for name in (NAME, f"{NAME}@{current}", "", None)}
        answers.add(answer_of(http.post("/v1/chat/completions", json=ask())))
        assert len(answers) == 1

    def test_logprobs(self, client: openai.OpenAI) -> None:
        """Also: the first such request must not make everybody wait for a compiler."""
        start = time.monotonic()
        answer = client.chat.completions.create(model=NAME, logprobs=True, top_logprobs=3, **ask(max_tokens=2))
        assert time.monotonic() - start < 30
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        first = logprobs.content[0]
        assert len(first.top_logprobs) == 3
        assert first.logprob == pytest.approx(max(top.logprob for top in first.top_logprobs))

    def test_structured_output(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model=f"{NAME}-base", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, **ask()
        )
        assert answer.choices[0].message.content in ("yes", "no")


class TestCompletions:
    def test_text(self, client: openai.OpenAI, current: int) -> None:
        raw = client.completions.with_raw_response.create(
            model=NAME, prompt="The capital of France is", max_tokens=4, temperature=0
        )
        assert raw.headers[HEADER] == str(current)
        assert "Paris" in raw.parse().choices[0].text

    def test_stream(self, client: openai.OpenAI) -> None:
        wanted: dict[str, Any] = {
            "model": f"{NAME}-base",
            "prompt": "One, two, three,",
            "max_tokens": 6,
            "temperature": 0,
        }
        whole = client.completions.create(**wanted).choices[0].text
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **wanted)) == whole


class TestTokenize:
    def test_there_and_back(self, http: httpx.Client, current: int) -> None:
        there = http.post("/tokenize", json={"prompt": "Bonjour, Ünïcode!"})
        assert there.headers[HEADER] == str(current)
        back = http.post("/detokenize", json={"tokens": there.json()["tokens"], "model": f"{NAME}-base"})
        assert back.headers[HEADER] == "base"
        assert back.json() == {"prompt": "Bonjour, Ünïcode!"}

    def test_a_chat_is_rendered_with_its_template(self, http: httpx.Client) -> None:
        tokens = http.post("/tokenize", json={"messages": ask()["messages"]}).json()
        text = http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
        assert QUESTION in text and "<|im_start|>assistant" in text
        usage = post(http, max_tokens=1).json()["usage"]
        assert usage["prompt_tokens"] == tokens["count"]


class TestOperation:
    def test_that_there_are_no_keys_is_said(self, server_process: ServerProcess) -> None:
        said = server_process.printed()
        assert "no API key is configured: the server answers this machine only" in said
        assert "/console (no admin key is configured: this machine only)" in said

    def test_health_and_readiness(self, http: httpx.Client, current: int) -> None:
        assert http.get("/health").json() == {"status": "ready"}
        assert http.get("/ready").json()["generation"] == current

    def test_metrics(self, http: httpx.Client, current: int) -> None:
        before = tokens_by_kind(http)
        post(http, model=NAME, max_tokens=8)
        time.sleep(1.1)  # the counts are up to a second old
        assert sum(tokens_by_kind(http).values()) > sum(before.values())
        text = http.get("/metrics").text
        assert f"\nseta_generation {float(current)}\n" in text
        assert "\nseta_ready 1.0\n" in text
        assert re.search(rf'seta_generation_info{{.*generation="{current}".*}} 1.0', text)
        assert f'vllm:num_requests_running{{engine="0",model_name="{NAME}"}}' in text

    def test_metrics_name_every_expert(self, http: httpx.Client, demo_bank: Path) -> None:
        text = http.get("/metrics").text
        for expert in Bank.open(demo_bank).manifest().experts:
            assert f'seta_tokens_total{{expert="{expert.id}",kind="{expert.kind}"}}' in text

    def test_metrics_hold_no_path(self, http: httpx.Client, model_dir: Path) -> None:
        text = http.get("/metrics").text
        assert str(REPO) not in text and model_dir.name not in text

    def test_a_client_that_leaves_frees_its_place(self, http: httpx.Client) -> None:
        for stream in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                post_and_leave(http, stream)
            deadline = time.monotonic() + 30
            while running(http) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert running(http) == 0


def post_and_leave(http: httpx.Client, stream: bool) -> None:
    """Start a long answer and go away in the middle of it."""
    body = ask("Count to a thousand.", max_tokens=1500, ignore_eos=True, stream=stream)
    with (
        httpx.Client(base_url=http.base_url, timeout=1.5) as hasty,
        hasty.stream("POST", "/v1/chat/completions", json=body) as r,
    ):
        deadline = time.monotonic() + 1.5
        for _ in r.iter_raw():
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("enough")


def running(http: httpx.Client) -> float:
    found = re.search(r"^vllm:num_requests_running{[^}]*} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def tokens_by_kind(http: httpx.Client) -> dict[str, float]:
    lines = re.findall(
        r'^seta_tokens_total{expert="([^"]*)",kind="\w+"} (\S+)$', http.get("/metrics").text, re.MULTILINE
    )
    return {expert: float(count) for expert, count in lines}
