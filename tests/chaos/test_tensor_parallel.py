"""Two ranks that share each layer answer and decide as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.bank import Bank
from adapters.calibrate import general_prompts
from adapters.data import render_chat
from tests.seta_runtime.engine import Answer, open_engine
from tests.seta_runtime.random_bank import TASKS, make_random_bank, prompts_of
from tests.tiny import make_tiny_model, make_tokenizer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BATCHES = [[1, 2, None, 2, 1], [2, 2, 2, 2, 2], [0, None, 1, 0, 2]]


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_two_ranks_answer_as_one(tmp_path: Path, num_kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target, mixed batches, chunks, decode; k and v heads repeated on both ranks (1) and spread (2)."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # by itself vLLM wants a NUMA node for each rank
    model = make_tiny_model(tmp_path / "model", num_kv_heads=num_kv_heads)
    bank: Bank = make_random_bank(tmp_path / "bank", model, TARGETS)
    texts = [text for task in TASKS for text in prompts_of(task, 2, seed=3)] + general_prompts()[-1:]
    tokenizer = make_tokenizer()
    prompts = [render_chat(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    answers: list[list[Answer]] = []
    counts: list[dict[str, Any]] = []
    for size in (1, 2):
        options: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 6, "tensor_parallel_size": size}
        with open_engine(model, bank.root, **options) as engine:
            answers.append([a for batch in BATCHES for a in engine.generate(prompts, batch, max_tokens=6)])
            stats = engine.llm.collective_rpc("seta_stats")
            assert len(stats) == size and all(one == stats[0] for one in stats)
            counts.append({key: stats[0][key] for key in ("tokens_by_expert", "base_tokens", "routed_tokens")})
    one, two = answers
    assert [answer.tokens for answer in two] == [answer.tokens for answer in one]
    assert counts[0] == counts[1] and counts[0]["routed_tokens"] > 100 and counts[0]["base_tokens"] > 0
    for mine, other in zip(one, two, strict=True):
        shared = mine.first_logprobs.keys() & other.first_logprobs.keys()
        assert len(shared) >= 4
        assert max(abs(mine.first_logprobs[t] - other.first_logprobs[t]) for t in shared) < 1e-3
