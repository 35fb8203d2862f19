"""The engine answers as the training side's plain greedy decoding does, on every architecture that is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.backbone import Backbone
from adapters.bank import TARGETS, Bank, Target
from adapters.calibrate import general_prompts
from adapters.data import render_chat
from adapters.gate import load_gate
from adapters.generate import Generated, generate
from adapters.routed import RoutedModel
from tests.seta_runtime.engine import open_engine
from tests.seta_runtime.random_bank import TASKS, make_random_bank, prompts_of
from tests.tiny import Architecture, make_tiny_model

MAX_TOKENS = 8


class Reference:
    """Greedy decoding of every generation of a bank, in float32; generation None is the base model."""

    def __init__(self, model: Path, bank: Bank) -> None:
        self.tokenizer = Backbone.load(model, "float32").tokenizer
        self.models = {}
        for generation in bank.generations():
            manifest = bank.manifest(generation)
            routed = RoutedModel.of(Backbone.load(model, "float32"), bank, manifest)
            self.models[generation] = (routed, load_gate(manifest, bank.load_gate(manifest)))

    def answer(self, prompt: list[int], generation: int | None) -> Generated:
        model, gate = self.models[generation or 0]
        return generate(model, None if generation is None else gate, prompt, MAX_TOKENS)


@pytest.mark.parametrize("targets", [("v_proj",), TARGETS], ids=["v_proj", "all"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_tokens_equal_the_training_sides(
    tmp_path: Path, architecture: Architecture, targets: tuple[Target, ...]
) -> None:
    model = make_tiny_model(tmp_path / "model", architecture)
    bank = make_random_bank(tmp_path / "bank", model, targets)
    reference = Reference(model, bank)
    texts = [prompt for task in TASKS for prompt in prompts_of(task, 3, seed=1)] + general_prompts()[-3:]
    prompts = [render_chat(reference.tokenizer, [{"role": "user", "content": text}]) for text in texts]
    requests = [(prompt, generation) for prompt in prompts for generation in (None, 1, 2)]
    expected = [reference.answer(*request) for request in requests]

    with open_engine(model, bank.root) as engine:
        answers = engine.generate(*map(list, zip(*requests, strict=True)), max_tokens=MAX_TOKENS)
    assert [answer.tokens for answer in answers] == [generated.tokens for generated in expected]
    for answer, generated in zip(answers, expected, strict=True):
        for token, logprob in answer.first_logprobs.items():
            assert logprob == pytest.approx(float(generated.logprobs[0, token]), abs=1e-3)

    at_end = {
        g: [_decision(reference, e, g) for e, (_, of) in zip(expected, requests, strict=True) if of == g]
        for g in (1, 2)
    }
    assert set(at_end[1]) == {-1, 0} and set(at_end[2]) == {-1, 0, 1}, "the prompts do not reach every decision"
    base = [e.tokens for e, (_, generation) in zip(expected, requests, strict=True) if generation is None]
    routed = [e.tokens for e, (_, generation) in zip(expected, requests, strict=True) if generation == 2]
    assert sum(a != b for a, b in zip(base, routed, strict=True)) >= 4, "the experts change too little to see"


def _decision(reference: Reference, generated: Generated, generation: int) -> int:
    """The task that the prompt's last token goes to, -1 for base."""
    weights = reference.models[generation][1].decide(generated.pooled[len(generated.pooled) - len(generated.tokens)])
    return int(weights.argmax()) if bool(weights.any()) else -1
