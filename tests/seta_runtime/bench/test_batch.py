"""A batch on an engine that is stepped by hand: what a step is, and that nothing happens by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from seta_runtime.bench.batch import Batch
from seta_runtime.bench.points import DECODE_TOKENS, ONE_PROMPT, PREFILL_TOKENS, Point

PROMPTS = [[1, 2, 3], [4, 5], [6]]


@dataclass
class Output:
    request_id: str
    finished: bool


@dataclass
class Scripted:
    """An engine that prefills `room` new requests a step and gives each request that is prefilled a token."""

    room: int = 2
    left: dict[str, int] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    asked: list[tuple[str, list[int], Any]] = field(default_factory=list)
    steps: int = 0

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any = None) -> str:
        self.asked.append((request_id, prompt["prompt_token_ids"], lora_request))
        self.left[request_id] = params
        self.waiting.append(request_id)
        return request_id + "-internal"

    def step(self) -> list[Output]:
        self.steps += 1
        del self.waiting[: self.room]
        outputs = []
        for name in [name for name in self.left if name not in self.waiting]:
            self.left[name] -= 1
            outputs.append(Output(name, self.left[name] == 0))
            if not self.left[name]:
                del self.left[name]
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.left.pop(name, None)


def test_a_decoding_batch_is_past_its_prefill_and_lasts_for_all_its_steps() -> None:
    engine = Scripted()
    batch = Batch(engine, PROMPTS, [], int)
    batch.begin(Point("decode_3", 3), 0)
    assert engine.steps == 2 and not engine.waiting, "two requests fit into a step"
    assert [batch.step() for _ in range(DECODE_TOKENS)] == [3] * DECODE_TOKENS
    assert engine.steps == 2 + DECODE_TOKENS and len(engine.left) == 3


def test_the_next_batch_takes_the_place_of_the_last_one() -> None:
    engine = Scripted()
    batch = Batch(engine, PROMPTS, ["new", "old"], int)
    for number in range(2):
        batch.begin(Point("decode_2", 2), number)
    assert [prompt for _, prompt, _ in engine.asked] == [[1, 2, 3], [4, 5], [6], [1, 2, 3]]
    assert [adapter for *_, adapter in engine.asked] == ["new", "old"] * 2
    assert sorted(engine.left) == ["3", "4"], "and the first one's requests are gone"
    batch.end()
    assert not engine.left


def test_a_step_of_prefill_is_whole_prompts() -> None:
    engine = Scripted()
    batch = Batch(engine, PROMPTS, [], int)
    batch.begin(ONE_PROMPT, 0)
    assert engine.steps == 0
    assert [batch.step(), batch.step()] == [PREFILL_TOKENS] * 2
    assert engine.steps == 2 and not engine.left
    assert [prompt[:3] for _, prompt, _ in engine.asked] == [[1, 2, 3], [4, 5, 4]]


def test_a_step_that_was_not_whole_is_an_error() -> None:
    batch = Batch(Scripted(room=1), PROMPTS, [], int)
    batch.begin(Point("prefill", 2, 8), 0)
    with pytest.raises(RuntimeError, match="prefill gave 1 requests a token and ended 1 of them; expected 2 and 2"):
        batch.step()
    engine = Scripted()
    batch = Batch(engine, PROMPTS, [], int)
    batch.begin(Point("decode_2", 2), 0)
    engine.left["2"] = 1
    with pytest.raises(RuntimeError, match="gave 2 requests a token and ended 1 of them; expected 2 and 0"):
        batch.step()
