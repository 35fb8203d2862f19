"""The engine answers as the training side's plain greedy decoding does, on every architecture that is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.bank import TARGETS, Target
from adapters.calibrate import general_prompts
from tests.seta_runtime.engine import open_engine
from tests.seta_runtime.random_bank import TASKS, make_random_bank, prompts_of
from tests.seta_runtime.reference import Reference
from tests.tiny import Architecture, make_tiny_model

MAX_TOKENS = 8


@pytest.mark.parametrize("targets", [("v_proj",), TARGETS], ids=["v_proj", "all"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_tokens_equal_the_training_sides(
    tmp_path: Path, architecture: Architecture, targets: tuple[Target, ...]
) -> None:
    model = make_tiny_model(tmp_path / "model", architecture)
    bank = make_random_bank(tmp_path / "bank", model, targets)
    reference = Reference(model, bank, MAX_TOKENS)
    texts = [prompt for task in TASKS for prompt in prompts_of(task, 3, seed=1)] + general_prompts()[-3:]
    prompts = [reference.tokens(text) for text in texts]
    requests = [(prompt, generation) for prompt in prompts for generation in (None, 1, 2)]
    expected = [reference.answer(*request) for request in requests]

    with open_engine(model, bank.root) as engine:
        answers = engine.generate(*map(list, zip(*requests, strict=True)), max_tokens=MAX_TOKENS)
    assert [answer.tokens for answer in answers] == [generated.tokens for generated in expected]
    for answer, generated in zip(answers, expected, strict=True):
        for token, logprob in answer.first_logprobs.items():
            assert logprob == pytest.approx(float(generated.logprobs[0, token]), abs=1e-3)

    at_end = {
        g: [reference.decision(e, g) for e, (_, of) in zip(expected, requests, strict=True) if of == g] for g in (1, 2)
    }
    assert set(at_end[1]) == {-1, 0} and set(at_end[2]) == {-1, 0, 1}, "the prompts do not reach every decision"
    base = [e.tokens for e, (_, generation) in zip(expected, requests, strict=True) if generation is None]
    routed = [e.tokens for e, (_, generation) in zip(expected, requests, strict=True) if generation == 2]
    assert sum(a != b for a, b in zip(base, routed, strict=True)) >= 4, "the experts change too little to see"
