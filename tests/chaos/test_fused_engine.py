"""The GPU's path under the real engine: on a CPU with the kernel in Triton's interpreter, against the CPU's path."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.bank import Bank
from adapters.calibrate import general_prompts
from adapters.data import render_chat
from seta_runtime.ops import fused
from tests.seta_runtime.engine import open_engine
from tests.seta_runtime.random_bank import TASKS, make_random_bank, prompts_of
from tests.tiny import make_tiny_model, make_tokenizer


def test_two_generations_in_one_batch_answer_as_on_the_cpus_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill in chunks, decode, base requests, and a slot that changes hands, on a bank with two targets."""
    model = make_tiny_model(tmp_path / "model")
    bank: Bank = make_random_bank(tmp_path / "bank", model, ("v_proj", "down_proj"))
    texts = [text for task in TASKS for text in prompts_of(task, 1, seed=3)] + general_prompts()[-1:]
    tokenizer = make_tokenizer()
    prompts = [render_chat(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    batches = [[1, 2, None], [2, 1, 1], [0, 0, 2], [None, None, None]]
    answers = []
    for is_fused in (False, True):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(fused, "is_selected", lambda _, chosen=is_fused: chosen)
        with open_engine(model, bank.root, max_num_batched_tokens=48, max_num_seqs=6) as engine:
            kinds = {type(m).__name__ for m in engine.runner.get_model().modules()}
            assert ("FusedProjection" in kinds) is is_fused and ("RoutedProjection" in kinds) is not is_fused
            answers.append([[a.tokens for a in engine.generate(prompts, batch, max_tokens=4)] for batch in batches])
            routed = engine.llm.collective_rpc("seta_stats")[0]["routed_tokens"]
            assert routed > 100
    assert answers[0] == answers[1]
