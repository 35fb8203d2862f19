"""The base model is intact: general prompts are answered as without experts, base requests as without the plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.backbone import Backbone
from adapters.bank import Bank
from adapters.data import render_chat
from tests.seta_runtime.engine import open_engine

MAX_TOKENS, AT_LEAST = 16, 48
OPTIONS = {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def prompts(model_dir: Path, general: list[str]) -> list[list[int]]:
    tokenizer = Backbone.load(model_dir).tokenizer
    return [render_chat(tokenizer, [{"role": "user", "content": text}]) for text in general]


def test_general_prompts(model_dir: Path, demo_bank: Path, prompts: list[list[int]]) -> None:
    """The newest generation against the base model, and the base model on our engine against the plain engine."""
    newest = Bank.open(demo_bank).manifest().generation
    with open_engine(model_dir, demo_bank, **OPTIONS) as engine:
        routed = [answer.tokens for answer in engine.generate(prompts, newest, MAX_TOKENS)]
        base = [answer.tokens for answer in engine.generate(prompts, None, MAX_TOKENS)]
        stats = engine.llm.collective_rpc("seta_stats")[0]
    with open_engine(model_dir, None, **OPTIONS) as engine:
        plain = [answer.tokens for answer in engine.generate(prompts, None, MAX_TOKENS)]

    num_equal = sum(a == b for a, b in zip(routed, base, strict=True))
    print(f"{num_equal} of {len(prompts)} general prompts are answered as by the base model: {stats}")
    assert len(prompts) == 50
    assert base == plain
    assert num_equal >= AT_LEAST
