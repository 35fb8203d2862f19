"""Requests that are watched, without an engine: what is asked of the worker, and that it is left with nothing."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import ApiError
from server.explain import Explanation, RouteAnswer, route_of
from server.explanation import summarize
from tests.server.explaining import MANIFEST, SHOUTS, SUMS, Engine, Handler, explained


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
