"""Explanations without an engine: what may be asked, what is told, and that the worker is left with nothing."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from server.errors import ApiError, as_api_error
from server.explain import Explanation, Options, RouteAnswer, RouteRequest, check, route_of, take_options
from server.explanation import MAX_LISTED_TOKENS, list_tokens, summarize, texts_of
from server.watching import Watched

MANIFEST: Any = SimpleNamespace(
    generation=3,
    gate=SimpleNamespace(kind="analytic"),
    tasks=[SimpleNamespace(name="sums"), SimpleNamespace(name="shouts")],
    experts=[
        SimpleNamespace(id="sums.unique", kind="unique", tasks=("sums",)),
        SimpleNamespace(id="both.shared", kind="shared", tasks=("sums", "shouts")),
        SimpleNamespace(id="shouts.unique", kind="unique", tasks=("shouts",)),
    ],
    experts_by_task=[[0, 1], [1, 2]],
    tasks_by_expert=[[0], [0, 1], [1]],
)
SUMS, SHOUTS, BASE = [(0, 1.0)], [(1, 1.0)], []


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode(errors="replace")


class Engine:
    """A prompt of three tokens, an answer of two, an output each; `told` records what the worker was asked."""

    def __init__(self, decisions: Any = (SUMS, BASE, SUMS, SHOUTS)) -> None:
        self.decisions = decisions
        self.told: list[tuple[Any, ...]] = []
        self.added: list[tuple[str, Any]] = []

    def get_tokenizer(self) -> Letters:
        return Letters()

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        self.told.append((method, *args))
        if method != "seta_decisions" or self.decisions is None:
            return [None]
        return [list(self.decisions)[args[1] : args[2]]]

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> AsyncGenerator[Any, None]:
        self.added.append((request_id, params))
        for token in (100, 101):
            await asyncio.sleep(0)
            yield SimpleNamespace(prompt_token_ids=[97, 98, 99], outputs=[SimpleNamespace(token_ids=[token])])


class Answer:
    """vLLM's response."""

    def model_dump(self) -> dict[str, Any]:
        return {"model": "demo@3", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


class Handler:
    """vLLM's handler: it takes everything from the engine."""

    def __init__(self, engine: Any) -> None:
        self.engine_client = engine

    async def whole(self) -> Answer:
        async for _ in self.engine_client.generate("abc", SimpleNamespace(), "chatcmpl-1", priority=0):
            pass
        return Answer()

    async def stream(self) -> AsyncGenerator[str, None]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "demo@3"}
        async for output in self.engine_client.generate("abc", SimpleNamespace(), "chatcmpl-1"):
            yield f"data: {json.dumps(head | {'choices': [output.outputs[0].token_ids]})}\n\n"
        yield "data: [DONE]\n\n"


def explained(engine: Engine, with_tokens: bool = False, manifest: Any = MANIFEST) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        explanation: Any = Explanation(engine, manifest, with_tokens)  # type: ignore[arg-type]
        return await explanation.finish(await explanation.handler(Handler(engine)).whole())  # type: ignore[no-any-return]

    return asyncio.run(run())


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


class TestWatching:
    def test_the_answers_decisions_without_its_tokens(self) -> None:
        engine = Engine()
        told = explained(engine)["seta"]
        assert told == summarize(MANIFEST, [SUMS, SHOUTS])
        (request_id, params), *_ = engine.added
        assert request_id.startswith("chatcmpl-1-") and len(request_id) > 32
        assert not hasattr(params, "skip_reading_prefix_cache")
        assert engine.told == [("seta_watch", request_id), ("seta_decisions", request_id, 2, 4)]

    def test_every_token(self) -> None:
        engine = Engine()
        told = explained(engine, with_tokens=True)["seta"]
        assert engine.added[0][1].skip_reading_prefix_cache is True
        assert told["tokens_left_off"] == 0
        shown = [(token["text"], token["part"], token["base_weight"], token["tasks"]) for token in told["tokens"]]
        sums, shouts = [{"name": "sums", "weight": 1.0}], [{"name": "shouts", "weight": 1.0}]
        assert shown == [
            ("a", "prompt", 0.0, sums),
            ("b", "prompt", 1.0, []),
            ("c", "prompt", 0.0, sums),
            ("d", "answer", 0.0, sums),
            ("e", "answer", 0.0, shouts),
        ]
        assert told["tokens"][1]["experts"] == []
        assert told["tokens"][4]["experts"] == [
            {"id": "both.shared", "weight": 1.0},
            {"id": "shouts.unique", "weight": 1.0},
        ]

    @pytest.mark.parametrize("manifest", [None, SimpleNamespace(**(vars(MANIFEST) | {"tasks": []}))])
    def test_nobody_asks_the_worker_about_base(self, manifest: Any) -> None:
        engine = Engine()
        told = explained(engine, with_tokens=True, manifest=manifest)["seta"]
        assert engine.told == [] and told["base_weight"] == 1.0 and told["experts"] == []
        assert [token["base_weight"] for token in told["tokens"]] == [1.0] * 5

    def test_two_requests_of_one_id(self) -> None:
        engine = Engine()
        explained(engine), explained(engine)
        assert len({request_id for request_id, _ in engine.added}) == 2

    def test_what_the_worker_lost(self) -> None:
        answer = explained(Engine(decisions=None))
        assert answer["seta"] is None
        with pytest.raises(ApiError) as failure:
            route_of(answer)
        assert failure.value.status == 503

    def test_an_error_stays_an_error(self) -> None:
        refusal = SimpleNamespace(error="no")
        explanation: Any = Explanation(Engine(), MANIFEST, False)  # type: ignore[arg-type]
        assert asyncio.run(explanation.finish(refusal)) is refusal

    def test_the_handler_itself_is_not_touched(self) -> None:
        engine = Engine()
        handler = Handler(engine)
        Explanation(engine, MANIFEST, False).handler(handler)  # type: ignore[arg-type]
        assert handler.engine_client is engine

    def test_a_stream_tells_before_its_end(self) -> None:
        async def run() -> list[str]:
            explanation: Any = Explanation(engine, MANIFEST, False)  # type: ignore[arg-type]
            events = await explanation.finish(explanation.handler(Handler(engine)).stream())
            return [event async for event in events]

        engine = Engine()
        *chunks, told, done = asyncio.run(run())
        assert len(chunks) == 2 and done == "data: [DONE]\n\n"
        assert json.loads(told.removeprefix("data: ")) == {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "demo@3",
            "choices": [],
            "seta": summarize(MANIFEST, [SUMS, SHOUTS]),
        }

    def test_a_request_that_is_cut_short_is_forgotten(self) -> None:
        async def run() -> None:
            explanation: Any = Explanation(engine, MANIFEST, False)  # type: ignore[arg-type]
            events = await explanation.finish(explanation.handler(Handler(engine)).stream())
            await anext(events)
            await events.aclose()
            await asyncio.sleep(0.01)

        engine = Engine()
        asyncio.run(run())
        assert [method for method, *_ in engine.told] == ["seta_watch", "seta_forget"]
        assert engine.told[0][1] == engine.told[1][1]

    def test_a_route_is_the_prompts_part(self) -> None:
        told = route_of(explained(Engine(), with_tokens=True))
        assert RouteAnswer.model_validate(told).model_dump() == told, "it is what the OpenAPI document describes"
        assert [token["text"] for token in told["tokens"]] == ["a", "b", "c"]
        assert all("part" not in token for token in told["tokens"])
        assert (told["object"], told["model"], told["usage"]) == ("seta.route", "demo@3", {"prompt_tokens": 3})
