"""Generations come and go in the engine's slots; a request's answer never depends on what else is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from adapters.bank import Bank, BankError
from adapters.calibrate import general_prompts
from adapters.data import render_chat
from seta_runtime.manager import GenerationWorkerManager
from tests.seta_runtime.engine import Engine, open_engine
from tests.seta_runtime.random_bank import TASKS, make_random_bank, prompts_of
from tests.tiny import make_tiny_model, make_tokenizer

MAX_TOKENS = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two slots for generations 0, 1 and 2; small steps, so that prompts are cut and mixed."""
    folder = tmp_path_factory.mktemp("slots")
    model = make_tiny_model(folder / "model")
    bank = make_random_bank(folder / "bank", model, ("v_proj", "down_proj"))
    options: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 6, "enable_prefix_caching": True}
    with open_engine(model, bank.root, **options) as opened:
        yield opened


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    texts = [prompt for task in TASKS for prompt in prompts_of(task, 2, seed=3)] + general_prompts()[-1:]
    tokenizer = make_tokenizer()
    return [render_chat(tokenizer, [{"role": "user", "content": text}]) for text in texts]


@pytest.fixture(scope="module")
def alone(engine: Engine, prompts: list[list[int]]) -> dict[int | None, list[list[int]]]:
    """Every prompt answered by itself, under every generation: generation 2 is loaded last and evicts 0."""
    return {g: [engine.generate([p], g, MAX_TOKENS)[0].tokens for p in prompts] for g in (None, 0, 1, 2)}


def resident(engine: Engine) -> list[int]:
    return engine.llm.collective_rpc("seta_resident")[0]  # type: ignore[no-any-return]


def test_generation_0_is_the_base_model(alone: dict[int | None, list[list[int]]]) -> None:
    assert alone[0] == alone[None]
    assert alone[1][0] != alone[None][0] and alone[2] != alone[1]


def test_an_evicted_generation_comes_back_the_same(
    engine: Engine, prompts: list[list[int]], alone: dict[int | None, list[list[int]]]
) -> None:
    for generation in (0, 1, 2, 0, 2, 1):
        answers = engine.generate(prompts, generation, MAX_TOKENS)
        assert [answer.tokens for answer in answers] == alone[generation]
        assert generation + 1 in resident(engine) and len(resident(engine)) <= 2


@pytest.mark.parametrize("pair", [(1, 2), (0, 2)])
def test_a_mixed_batch_equals_each_alone(
    engine: Engine, prompts: list[list[int]], alone: dict[int | None, list[list[int]]], pair: tuple[int, int]
) -> None:
    requests = [(p, i, g) for i, p in enumerate(prompts) for g in (None, *pair)]
    answers = engine.generate([p for p, _, _ in requests], [g for _, _, g in requests], MAX_TOKENS)
    assert [answer.tokens for answer in answers] == [alone[g][i] for _, i, g in requests]


def test_the_prefix_cache_keeps_generations_apart(
    engine: Engine, prompts: list[list[int]], alone: dict[int | None, list[list[int]]]
) -> None:
    long = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    for generation in (1, 2, None):
        engine.generate([prompts[long]], generation, MAX_TOKENS)
        again = engine.generate([prompts[long]], generation, MAX_TOKENS)[0]
        assert again.cached >= 32
        assert again.tokens == alone[generation][long]


def test_a_slot_reassigned_during_a_request(
    engine: Engine, prompts: list[list[int]], alone: dict[int | None, list[list[int]]]
) -> None:
    """`add_lora` between two steps evicts the running generation; the next step loads it again, in another slot."""
    engine.generate(prompts[:1], 1, MAX_TOKENS)
    engine.generate(prompts[:1], 2, MAX_TOKENS)
    core = engine.llm.llm_engine
    core.add_request("moving", {"prompt_token_ids": prompts[0]}, _greedy(), lora_request=engine.request(1))
    finished = []
    while core.has_unfinished_requests():
        finished += [output for output in core.step() if output.finished]
        core.add_lora(engine.request(2))
        core.add_lora(engine.request(0))
    assert [list(output.outputs[0].token_ids) for output in finished] == [alone[1][0]]


def test_a_broken_generation_is_refused_and_disturbs_nothing(
    engine: Engine, prompts: list[list[int]], alone: dict[int | None, list[list[int]]]
) -> None:
    assert engine.bank is not None
    bank = Bank.open(engine.bank)
    engine.generate(prompts[:1], 1, MAX_TOKENS)
    engine.generate(prompts[:1], 0, MAX_TOKENS)
    before = resident(engine)
    expert = next(bank.root.glob(f"objects/sha256/{bank.manifest(2).experts[1].object}*"))
    kept = expert.rename(expert.with_suffix(".kept"))
    try:
        with pytest.raises(BankError):
            engine.llm.llm_engine.add_lora(engine.request(2))
    finally:
        kept.rename(expert)
    assert resident(engine) == before
    answers = engine.generate(prompts * 2, [0] * len(prompts) + [1] * len(prompts), MAX_TOKENS)
    assert [answer.tokens for answer in answers] == alone[0] + alone[1]


def test_a_prepared_generation_is_put_into_its_slot_without_the_disk(
    engine: Engine, prompts: list[list[int]], alone: dict[int | None, list[list[int]]]
) -> None:
    """Loading is done beside the steps; then even a bank that is gone does not matter."""
    assert engine.bank is not None
    request = engine.request(2)
    request.lora_int_id = 50
    engine.llm.collective_rpc("seta_prepare", args=(50, 2, Bank.open(engine.bank).manifest(2).digest))
    while (state := engine.llm.collective_rpc("seta_preparation", args=(50,))[0])["state"] == "loading":
        engine.generate(prompts[:1], 1, 1)
    assert state["state"] == "ready" and state["resident_bytes"] > 0
    gone = engine.bank.rename(engine.bank.with_name("gone"))
    try:
        engine.llm.llm_engine.add_lora(request)
        answers = engine.llm.generate([{"prompt_token_ids": p} for p in prompts], _greedy(), lora_request=request)
    finally:
        gone.rename(engine.bank)
    assert [list(answer.outputs[0].token_ids) for answer in answers] == alone[2]
    engine.llm.llm_engine.remove_lora(50)


def _greedy() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=MAX_TOKENS)


def test_another_banks_generation_is_refused(engine: Engine, tmp_path: Path) -> None:
    assert engine.bank is not None
    shutil.copytree(engine.bank, tmp_path / "copy")
    stranger = Engine(engine.llm, tmp_path / "copy")
    request = stranger.request(1)
    request.lora_int_id = 77
    with pytest.raises(BankError, match="was named in bank 'copy'"):
        engine.llm.llm_engine.add_lora(request)


def test_stats_count_routed_and_base_tokens(engine: Engine, prompts: list[list[int]]) -> None:
    engine.llm.reset_prefix_cache()
    before = engine.llm.collective_rpc("seta_stats")[0]
    engine.generate(prompts, None, MAX_TOKENS)
    assert engine.llm.collective_rpc("seta_stats")[0] == before
    answers = engine.generate(prompts, 2, MAX_TOKENS)
    after = engine.llm.collective_rpc("seta_stats")[0]
    run = sum(len(p) + len(a.tokens) - 1 for p, a in zip(prompts, answers, strict=True))
    kinds = ("base_tokens", "routed_tokens")
    assert sum(after[kind] - before[kind] for kind in kinds) == run
    routed = after["routed_tokens"] - before["routed_tokens"]
    assert sum(after["tokens_by_expert"].values()) - sum(before["tokens_by_expert"].values()) == routed > 0
    adapter_id = engine.request(2).lora_int_id
    assert led_by_tasks(after, adapter_id) - led_by_tasks(before, adapter_id) == routed


def led_by_tasks(stats: dict[str, Any], adapter_id: int) -> int:
    """Routed tokens of one generation; 0 if it is not in memory."""
    return sum(sum(one["tokens_by_task"].values()) for one in stats["generations"] if one["adapter_id"] == adapter_id)


def test_a_removed_generation_is_let_go(engine: Engine, prompts: list[list[int]]) -> None:
    """Its tensors are freed with it: the slot holds nothing."""
    engine.generate(prompts[:1], 1, MAX_TOKENS)
    slots = engine.runner.lora_manager._adapter_manager.state.slots
    assert sorted(held.generation + 1 for held in slots if held is not None) == resident(engine)
    engine.llm.llm_engine.remove_lora(2)
    assert 2 not in resident(engine)
    assert sorted(held.generation + 1 for held in slots if held is not None) == resident(engine)


def test_each_rank_fills_its_slots_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM names a step's adapters in a set: its order is another one in each process."""
    added: list[int] = []
    manager: Any = object.__new__(GenerationWorkerManager)
    manager._adapter_manager = SimpleNamespace(lora_slots=9)
    monkeypatch.setattr(manager, "add_adapter", lambda request: added.append(request.lora_int_id))
    manager._apply_adapters([LoRARequest(f"bank@{i}", i, f"generations/0000{i}.json") for i in (7, 2, 9, 4)])
    assert added == [2, 4, 7, 9]
