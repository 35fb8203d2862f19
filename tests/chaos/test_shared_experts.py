"""The engine serves shared experts as the training side computes them, under both kinds of gate (eq. 14)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.bank import Bank
from adapters.blocks import by_site
from adapters.calibrate import general_prompts, softmax_gate
from adapters.evaluate import TaskScore
from adapters.gate import store_gate
from adapters.publish import Learned, membership, publish
from adapters.score_history import ScoreHistory
from adapters.softmax_gate import ExpansionSettings
from adapters.split_on_share import shared_id
from tests.seta_runtime.engine import open_engine
from tests.seta_runtime.random_bank import TASKS, add_random_expert, empty_bank, prompts_of, samples_of
from tests.seta_runtime.reference import Reference
from tests.tiny import make_tiny_model

MAX_TOKENS = 8
ANALYTIC, SOFTMAX = 2, 3
"""Generations with the same experts."""


def make_shared_bank(path: Path, model_dir: Path) -> Bank:
    """Two tasks. The second takes part in half of the first one's blocks; generation 3 has a softmax gate instead."""
    bank, model, gate = empty_bank(path, model_dir, ("v_proj", "down_proj"))
    manifest, history = bank.manifest(), ScoreHistory()
    start = softmax_gate(gate)
    sharp = ExpansionSettings("mass", 0.01, seed=0)
    for number, task in enumerate(TASKS):
        changed = {f"{task}.unique"}
        if number:
            half = sorted(model.blocks()["sums.unique"])[::2]
            model.split("sums.unique", shared_id(TASKS), by_site(half), number)
            changed |= {"sums.unique", shared_id(TASKS)}
        add_random_expert(model, f"{task}.unique", manifest, number + 1)
        samples = samples_of(task, model, gate)
        gate = gate.with_task(samples)
        members = torch.tensor(membership(model, number + 1), dtype=torch.float32)
        start = start.expanded([None] if number == 0 else [0, 0, None], samples, members, sharp)
        history = history.with_task({site: torch.zeros(1, 1) for site in model.sites})
        learned = Learned(task, 40, changed, {task: TaskScore(0.0, 0.0, 0)}, {})
        manifest = publish(bank, manifest, model, gate, history, learned, {})
    bank.publish(
        manifest.model_copy(update={"generation": SOFTMAX, "parent": ANALYTIC, "gate": store_gate(bank, start)})
    )
    return bank


def test_tokens_equal_the_training_sides(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", "llama")
    bank = make_shared_bank(tmp_path / "bank", model)
    assert [expert.kind for expert in bank.manifest().experts] == ["unique", "shared", "unique"]
    assert bank.verify() == []
    reference = Reference(model, bank, MAX_TOKENS)
    texts = [prompt for task in TASKS for prompt in prompts_of(task, 3, seed=1)] + general_prompts()[-3:]
    prompts = [reference.tokens(text) for text in texts]
    requests = [(prompt, generation) for prompt in prompts for generation in (None, ANALYTIC, SOFTMAX)]
    expected = [reference.answer(*request) for request in requests]

    with open_engine(model, bank.root) as engine:
        answers = engine.generate(*map(list, zip(*requests, strict=True)), max_tokens=MAX_TOKENS)
        stats = engine.runner.lora_manager.stats.as_dict()
    assert [answer.tokens for answer in answers] == [generated.tokens for generated in expected]
    for answer, generated in zip(answers, expected, strict=True):
        for token, logprob in answer.first_logprobs.items():
            assert logprob == pytest.approx(float(generated.logprobs[0, token]), abs=1e-3)

    for generation in (ANALYTIC, SOFTMAX):
        mine = [e for e, (_, of) in zip(expected, requests, strict=True) if of == generation]
        assert {reference.decision(e, generation) for e in mine} == {-1, 0, 1}, (
            "the prompts do not reach every decision"
        )
    answers_of = {g: [e.tokens for e, (_, of) in zip(expected, requests, strict=True) if of == g] for g in (None, 2, 3)}
    assert answers_of[None] != answers_of[ANALYTIC] != answers_of[SOFTMAX]
    assert set(stats["tokens_by_expert"]) == {expert.id for expert in bank.manifest().experts}
    by_task = [counts["tokens_by_task"] for counts in stats["generations"] if counts["tokens_by_task"]]
    assert len(by_task) == 2 and all(set(counts) == set(TASKS) and all(counts.values()) for counts in by_task)
