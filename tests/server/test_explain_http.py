"""Explanations from the real server over the real small model, through OpenAI's own client and through plain HTTP."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.bank import Bank, Manifest
from adapters.data import Example, read_examples
from tests.server.process import NAME, REPO
from tests.server.requests import HEADER, ask, post

EXPLAIN: dict[str, Any] = {"seta": {"explain": True}}
TOKENS: dict[str, Any] = {"seta": {"explain": "tokens"}}


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """One held-out example of each demo task."""
    return read_examples(REPO / "demo/examples.jsonl")


@pytest.fixture(scope="module")
def manifest(demo_bank: Path) -> Manifest:
    return Bank.open(demo_bank).manifest()


def told(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return dict(response.json()["seta"])


def streamed(chunks: list[Any]) -> tuple[str, str | None]:
    """The text and why it ended. How many tokens come in a chunk is chance: those made in one wait come together."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0].finish_reason


class TestChat:
    def test_each_task_is_answered_by_its_own_experts(
        self, client: openai.OpenAI, examples: list[Example], manifest: Manifest
    ) -> None:
        for example in examples:
            question = ask(str(example.prompt))
            plain = client.chat.completions.create(model=NAME, **question)
            answer = client.chat.completions.create(model=NAME, extra_body=EXPLAIN, **question)
            assert answer.choices == plain.choices and answer.usage == plain.usage
            seta: Any = answer.model_extra and answer.model_extra["seta"]
            assert set(seta) == {"generation", "base_weight", "tasks", "experts"}
            assert seta["generation"] == manifest.generation
            assert seta["tasks"][0] == {"name": example.task, "weight": 1.0}
            assert seta["base_weight"] == 0
            own = [expert for expert in manifest.experts if example.task in expert.tasks]
            assert sorted(expert["id"] for expert in seta["experts"]) == sorted(expert.id for expert in own)
            assert {(expert["kind"], expert["weight"]) for expert in seta["experts"]} <= {
                ("unique", 1.0),
                ("shared", 1.0),
            }

    def test_a_general_prompt_and_the_base_model(self, http: httpx.Client, manifest: Manifest) -> None:
        nothing = {"base_weight": 1.0, "tasks": [], "experts": []}
        assert told(post(http, **EXPLAIN)) == {"generation": manifest.generation} | nothing
        assert told(post(http, model=f"{NAME}-base", **EXPLAIN)) == {"generation": None} | nothing

    def test_tokens_of_the_prompt_and_the_answer_cached_or_not(
        self, http: httpx.Client, examples: list[Example]
    ) -> None:
        question = {"text": str(examples[0].prompt)}
        plain = post(http, **question).json()
        for _ in range(2):
            answer = post(http, **question, **TOKENS)
            seta, usage = told(answer), answer.json()["usage"]
            text = answer.json()["choices"][0]["message"]["content"]
            assert text == plain["choices"][0]["message"]["content"]
            parts = {part: [t for t in seta["tokens"] if t["part"] == part] for part in ("prompt", "answer")}
            assert len(parts["prompt"]) == usage["prompt_tokens"]
            assert len(parts["answer"]) == usage["completion_tokens"]
            assert question["text"] in "".join(token["text"] for token in parts["prompt"])
            assert "".join(token["text"] for token in parts["answer"]).startswith(text)
            assert all(token["base_weight"] + sum(t["weight"] for t in token["tasks"]) == 1 for token in seta["tokens"])
            assert parts["prompt"][0]["base_weight"] == 1, "the template's first token belongs to no task"
            assert seta["tokens_left_off"] == 0

    def test_explained_or_not_the_stream_is_the_same(self, client: openai.OpenAI, examples: list[Example]) -> None:
        wanted: dict[str, Any] = {"model": NAME, "stream": True} | ask(str(examples[1].prompt))
        plain = list(client.chat.completions.create(**wanted))
        *chunks, last = client.chat.completions.create(extra_body=EXPLAIN, **wanted)
        assert streamed(chunks) == streamed(plain) and streamed(plain)[0]
        assert all("seta" not in (chunk.model_extra or {}) for chunk in chunks)
        assert (last.id, last.model, last.object, last.choices) == (chunks[0].id, chunks[0].model, chunks[0].object, [])
        seta: Any = last.model_extra and last.model_extra["seta"]
        assert seta["tasks"] == [{"name": examples[1].task, "weight": 1.0}]

    def test_with_usage_it_comes_last(self, http: httpx.Client) -> None:
        events = post(http, stream=True, stream_options={"include_usage": True}, **EXPLAIN).text.strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        assert '"seta":' in events[-2].replace('" :', '":') and '"usage":{' in events[-3]


class TestCompletions:
    def test_whole_and_stream(self, client: openai.OpenAI) -> None:
        wanted: dict[str, Any] = {
            "model": NAME,
            "prompt": "The capital of France is",
            "max_tokens": 4,
            "temperature": 0,
        }
        whole = client.completions.create(extra_body=EXPLAIN, **wanted)
        assert whole.model_extra and whole.model_extra["seta"]["base_weight"] == 1
        *chunks, last = client.completions.create(extra_body=EXPLAIN, stream=True, **wanted)
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert last.choices == [] and last.object == "text_completion"
        assert last.model_extra and last.model_extra["seta"] == whole.model_extra["seta"]


class TestRoute:
    def test_it_is_the_decision_that_an_answer_begins_with(
        self, http: httpx.Client, examples: list[Example], manifest: Manifest
    ) -> None:
        for example in examples:
            messages = ask(str(example.prompt))["messages"]
            response = http.post("/v1/route", json={"messages": messages})
            assert response.headers[HEADER] == str(manifest.generation)
            route = response.json()
            assert set(route) == {"object", "model", "generation", "base_weight", "tasks", "experts", "usage"}
            assert (route["object"], route["model"]) == ("seta.route", f"{NAME}@{manifest.generation}")
            assert route["tasks"] == [{"name": example.task, "weight": 1.0}]
            assert route["experts"] == told(post(http, messages=messages, max_tokens=1, **EXPLAIN))["experts"]

    def test_tokens(self, http: httpx.Client) -> None:
        route = http.post("/v1/route", json={"prompt": "Bonjour, Ünïcode!", "tokens": True}).json()
        assert "".join(token["text"] for token in route["tokens"]) == "Bonjour, Ünïcode!"
        assert len(route["tokens"]) == route["usage"]["prompt_tokens"]
        base = http.post("/v1/route", json={"prompt": "Bonjour", "model": f"{NAME}-base", "tokens": True}).json()
        assert base["generation"] is None and base["base_weight"] == 1 and base["tokens"][0]["base_weight"] == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"seta": {"explains": True}}, "seta.explains"),
            ({"seta": {"explain": "all"}}, "seta.explain"),
            ({"seta": "explain"}, "seta"),
            ({"n": 2, **EXPLAIN}, "n"),
        ],
    )
    def test_explain(self, http: httpx.Client, fields: dict[str, Any], param: str) -> None:
        response = post(http, **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({}, 400),
            ({"prompt": "a", "messages": []}, 400),
            ({"messages": []}, 400),
            ({"prompt": "a", "max_tokens": 2}, 400),
            ({"prompt": ["a", "b"]}, 400),
            ({"prompt": "a " * 5000}, 400),
            ({"prompt": "a", "model": "nobody"}, 404),
        ],
    )
    def test_route(self, http: httpx.Client, body: dict[str, Any], status: int) -> None:
        response = http.post("/v1/route", json=body)
        assert response.status_code == status
        assert set(response.json()) == {"error"} and json.dumps(response.json()).count("a a") < 5

    def test_only_post(self, http: httpx.Client) -> None:
        assert http.get("/v1/route").status_code == 405
