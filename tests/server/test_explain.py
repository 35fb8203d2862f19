"""Explanations without an engine: what may be asked, and what is told."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from server.errors import ApiError, as_api_error
from server.explain import Options, RouteRequest, check, take_options
from server.explanation import MAX_LISTED_TOKENS, list_tokens, summarize, texts_of
from server.watching import Watched
from tests.server.explaining import BASE, MANIFEST, SHOUTS, SUMS, Letters


class TestOptions:
    def test_what_may_be_asked(self) -> None:
        body = {"model": "m", "seta": {"explain": "tokens"}}
        assert take_options(body) == (Options(explain="tokens"), {"model": "m"})
        assert take_options({"seta": {}})[0].explain is False
        assert take_options({"seta": {"explain": True}})[0].explain is True

    def test_a_body_without_them_goes_on_as_it_is(self) -> None:
        body = {"model": "m"}
        options, same = take_options(body)
        assert same is body and not options.explain

    @pytest.mark.parametrize(
        ("seta", "param"),
        [
            ({"explain": 1}, "seta.explain"),
            ({"explain": "yes"}, "seta.explain"),
            ({"explain": None}, "seta.explain"),
            ({"explains": True}, "seta.explains"),
            (True, "seta"),
            (None, "seta"),
            ([], "seta"),
        ],
    )
    def test_anything_else_is_refused_by_its_name(self, seta: Any, param: str) -> None:
        with pytest.raises(ValidationError) as refusal:
            take_options({"seta": seta})
        error = as_api_error(refusal.value)
        assert (error.status, error.param) == (400, param)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"n": 2}, "n"),
            ({"prompt": ["one", "two"]}, "n"),
            ({"use_beam_search": True}, "use_beam_search"),
            ({"max_tokens": 0}, "max_tokens"),
        ],
    )
    def test_one_prompt_one_answer(self, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(ApiError) as refusal:
            check(SimpleNamespace(**({"n": 1} | fields)))  # type: ignore[arg-type]
        assert (refusal.value.status, refusal.value.param) == (400, param)

    def test_route(self) -> None:
        wanted = RouteRequest(model="m", prompt="hello", tokens=True).as_request()
        assert wanted["seta"] == {"explain": "tokens"} and wanted["max_tokens"] == 1 and "tokens" not in wanted
        chat = [{"role": "user", "content": None}]
        assert RouteRequest(model="m", messages=chat).as_request()["messages"] == chat
        for wrong in ({}, {"messages": chat, "prompt": "a"}, {"prompt": "a", "chat_template_kwargs": {}}):
            with pytest.raises(ApiError):
                RouteRequest(model="m", **wrong).as_request()
        for wrong in ({"prompt": "a", "n": 2}, {"prompt": ["a", "b"]}, {"prompt": "a", "tokens": 1}):
            with pytest.raises(ValidationError):
                RouteRequest(model="m", **wrong)


class TestSummary:
    def test_means_over_the_decisions(self) -> None:
        told = summarize(MANIFEST, [SUMS, SUMS, SHOUTS, BASE, None])
        assert told == {
            "generation": 3,
            "base_weight": 0.25,
            "tasks": [{"name": "sums", "weight": 0.5}, {"name": "shouts", "weight": 0.25}],
            "experts": [
                {"id": "both.shared", "kind": "shared", "tasks": ["sums", "shouts"], "weight": 0.75},
                {"id": "sums.unique", "kind": "unique", "tasks": ["sums"], "weight": 0.5},
                {"id": "shouts.unique", "kind": "unique", "tasks": ["shouts"], "weight": 0.25},
            ],
        }

    def test_a_mixture(self) -> None:
        told = summarize(MANIFEST, [[(0, 0.7), (1, 0.3)]])
        assert told["base_weight"] == 0
        assert {expert["id"]: expert["weight"] for expert in told["experts"]} == {
            "both.shared": 1.0,
            "sums.unique": 0.7,
            "shouts.unique": 0.3,
        }

    def test_a_gate_over_experts(self) -> None:
        manifest: Any = SimpleNamespace(**(vars(MANIFEST) | {"gate": SimpleNamespace(kind="softmax")}))
        told = summarize(manifest, [[(1, 0.5), (0, 0.25)], [(0, 0.75)]])
        assert told["base_weight"] == 0.25
        assert [(expert["id"], expert["weight"]) for expert in told["experts"]] == [
            ("sums.unique", 0.5),
            ("both.shared", 0.25),
        ]
        assert told["tasks"] == [{"name": "sums", "weight": 0.625}, {"name": "shouts", "weight": 0.125}]

    def test_base(self) -> None:
        nothing = {"base_weight": 1.0, "tasks": [], "experts": []}
        assert summarize(None, [BASE]) == {"generation": None} | nothing
        assert summarize(MANIFEST, [BASE, BASE]) == {"generation": 3} | nothing


class TestTokens:
    def test_the_texts_make_the_whole(self) -> None:
        text = "Grüße, 東京 🎉!"
        texts = texts_of(Letters(), list(text.encode()))
        assert "".join(texts) == text
        assert texts[2:4] == ["", "ü"]

    def test_what_is_no_character_is_shown_as_such(self) -> None:
        assert texts_of(Letters(), [0xFF, 97, 0xE6, 0x9D]) == ["", "\ufffda", "", "\ufffd"]

    def test_only_so_many(self) -> None:
        prompt = [97] * MAX_LISTED_TOKENS
        watched = Watched(prompt, [98, 99], [SUMS] * (len(prompt) - 1) + [BASE, SHOUTS])
        listed = list_tokens(MANIFEST, watched, Letters())
        assert listed["tokens_left_off"] == 2
        assert len(listed["tokens"]) == MAX_LISTED_TOKENS
        assert [token["text"] for token in listed["tokens"][-3:]] == ["a", "b", "c"]
