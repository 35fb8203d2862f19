"""The same numbers in training and in serving: the real model, the demo bank, float32.

The reference is plain greedy decoding on the training side, one prompt at a time. The engine gets the same prompts
alone, in a mixed batch, in small chunks, and with their prefixes cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from adapters.bank import Bank
from adapters.generate import Generated
from tests.seta_runtime.engine import Answer, Engine, Seen, open_engine
from tests.seta_runtime.reference import Parity, Reference

HELD_OUT, GENERAL, MAX_TOKENS = 100, 20, 6
Request = tuple[int, int | None]
"""A prompt's index and a generation."""


@pytest.fixture(scope="module")
def reference(model_dir: Path, demo_bank: Path) -> Reference:
    return Reference(model_dir, Bank.open(demo_bank), MAX_TOKENS)


@pytest.fixture(scope="module")
def prompts(reference: Reference, held_out: dict[str, list[str]], general: list[str]) -> list[list[int]]:
    each = HELD_OUT // len(held_out)
    texts = [text for found in held_out.values() for text in found[:: len(found) // each][:each]] + general[:GENERAL]
    return [reference.tokens(text) for text in texts]


@pytest.fixture(scope="module")
def newest(reference: Reference) -> int:
    return reference.bank.manifest().generation


@pytest.fixture(scope="module")
def older(reference: Reference) -> int:
    """A generation that knows some of the tasks."""
    return reference.bank.generations()[len(reference.bank.generations()) // 2]


@pytest.fixture(scope="module")
def expected(reference: Reference, prompts: list[list[int]], newest: int, older: int) -> dict[Request, Generated]:
    """Every prompt under the newest generation; every tenth under an older one and under the base model as well."""
    requests = [(i, newest) for i in range(len(prompts))]
    requests += [(i, generation) for i in range(0, len(prompts), 10) for generation in (older, None)]
    return {(i, generation): reference.answer(prompts[i], generation) for i, generation in requests}


@pytest.fixture(scope="module")
def engine(model_dir: Path, demo_bank: Path) -> Iterator[Engine]:
    """Whole prompts in one step; prefixes are cached."""
    with open_engine(model_dir, demo_bank, enable_prefix_caching=True) as opened:
        yield opened


def run(
    engine: Engine, prompts: list[list[int]], requests: Sequence[Request]
) -> tuple[list[Answer], dict[str, list[Seen]]]:
    with engine.watching() as seen:
        answers = engine.generate([prompts[i] for i, _ in requests], [g for _, g in requests], MAX_TOKENS)
    return answers, seen


def check(
    reference: Reference,
    requests: Sequence[Request],
    answers: Sequence[Answer],
    seen: dict[str, list[Seen]],
    expected: dict[Request, Generated],
) -> None:
    """Every bound; and every prompt position that was not cached must have been pooled."""
    parity = Parity()
    for request, answer in zip(requests, answers, strict=True):
        wanted, generation = expected[request], request[1]
        parity.add(answer, wanted)
        if generation is not None:
            positions = parity.add_gate(seen[answer.request_id], wanted, reference.load(generation)[1])
            prompt_length = len(wanted.pooled) - len(wanted.tokens) + 1
            assert positions.tolist() == list(range(answer.cached, prompt_length))
    parity.check()


def test_the_engines_chat_makes_the_same_tokens(
    engine: Engine, reference: Reference, held_out: dict[str, list[str]]
) -> None:
    from vllm import SamplingParams

    texts = [found[0] for found in held_out.values()]
    chats = [[{"role": "user", "content": text}] for text in texts]
    outputs = engine.llm.chat(chats, SamplingParams(max_tokens=1), use_tqdm=False)
    assert [list(output.prompt_token_ids) for output in outputs] == [reference.tokens(text) for text in texts]


def test_the_prompts_reach_every_decision(
    reference: Reference, prompts: list[list[int]], expected: dict[Request, Generated], newest: int
) -> None:
    """Otherwise the tests below compare too little."""
    decided = [reference.decision(expected[i, newest], newest) for i in range(len(prompts))]
    num_tasks = len(reference.bank.manifest().tasks)
    right = sum(task == i * num_tasks // HELD_OUT for i, task in enumerate(decided[:HELD_OUT]))
    print(
        f"{right} of {HELD_OUT} held-out prompts end in their task, {decided[HELD_OUT:].count(-1)} general ones in base"
    )
    assert set(decided) == {-1, *range(num_tasks)}
    different = [i for i in range(0, HELD_OUT, 10) if expected[i, newest].tokens != expected[i, None].tokens]
    assert len(different) >= 5


def test_alone(
    engine: Engine, reference: Reference, prompts: list[list[int]], expected: dict[Request, Generated], newest: int
) -> None:
    requests, each = [(i, newest) for i in range(0, len(prompts), 10)], []
    for request in requests:
        engine.llm.reset_prefix_cache()
        each.append(run(engine, prompts, [request]))
    answers = [answer for (answer,), _ in each]
    check(reference, requests, answers, {key: part for _, seen in each for key, part in seen.items()}, expected)


def test_one_mixed_batch_then_the_same_from_the_prefix_cache(
    engine: Engine, reference: Reference, prompts: list[list[int]], expected: dict[Request, Generated]
) -> None:
    """Two generations and the base model side by side."""
    engine.llm.reset_prefix_cache()
    requests = sorted(expected, key=lambda request: request[0])
    answers, seen = run(engine, prompts, requests)
    check(reference, requests, answers, seen, expected)

    answers, seen = run(engine, prompts, requests)
    full_blocks = [(len(prompts[i]) - 1) // 32 * 32 for i, _ in requests]
    assert [answer.cached for answer in answers] == full_blocks
    assert sum(length > 0 for length in full_blocks) > len(requests) // 2
    check(reference, requests, answers, seen, expected)


def test_chunked_prefill(
    model_dir: Path,
    demo_bank: Path,
    reference: Reference,
    prompts: list[list[int]],
    expected: dict[Request, Generated],
) -> None:
    """No step has more than 40 tokens, decoding requests included: most prompts come in several pieces."""
    requests = sorted(expected, key=lambda request: request[0])
    with open_engine(model_dir, demo_bank, max_num_batched_tokens=40, max_num_seqs=16) as engine:
        answers, seen = run(engine, prompts, requests)
    pieces = [sum(len(part.positions) > 1 for part in seen[a.request_id]) for a in answers if a.request_id in seen]
    assert sum(count > 1 for count in pieces) > len(pieces) // 2
    check(reference, requests, answers, seen, expected)
