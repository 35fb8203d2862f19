"""What the real engine keeps for a watched request is what the training side decides, chunked, cached or preempted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from adapters.calibrate import general_prompts
from adapters.generate import Generated
from seta_runtime.decisions import Decision
from tests.seta_runtime.engine import Answer, Engine, open_engine
from tests.seta_runtime.random_bank import TASKS, make_random_bank, prompts_of
from tests.seta_runtime.reference import Reference
from tests.tiny import make_tiny_model

MAX_TOKENS = 24
Request = tuple[list[int], int | None]
Taken = list[Decision | None] | None
Led = dict[str, str | None]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tmp_path_factory.mktemp("explain")
    model = make_tiny_model(root / "model")
    return Reference(model, make_random_bank(root / "bank", model, ("v_proj",)), MAX_TOKENS)


@pytest.fixture(scope="module")
def requests(reference: Reference) -> list[Request]:
    texts = [prompt for task in TASKS for prompt in prompts_of(task, 3, seed=1)] + general_prompts()[-2:]
    return [(reference.tokens(text), generation) for text in texts for generation in (1, 2, None)]


@pytest.fixture(scope="module")
def expected(reference: Reference, requests: list[Request]) -> list[Generated]:
    return [reference.answer(*request) for request in requests]


def watched(engine: Engine, requests: Sequence[Request]) -> tuple[list[Answer], list[Taken], Led]:
    """All requests at once, every second one watched; one that is not has None. Last, what led at the prompts' ends."""
    first = engine.llm.request_counter.counter
    ids = [str(first + i) for i in range(len(requests))]
    for request_id in ids[::2]:
        engine.llm.collective_rpc("seta_watch", args=(request_id,))
    engine.llm.collective_rpc("seta_led")
    answers = engine.generate([p for p, _ in requests], [g for _, g in requests], MAX_TOKENS)
    (led,) = engine.llm.collective_rpc("seta_led")
    taken = []
    for request_id, (prompt, _), answer in zip(ids, requests, answers, strict=True):
        stop = len(prompt) + len(answer.tokens) - 1
        taken += engine.llm.collective_rpc("seta_decisions", args=(request_id, 0, stop))
    assert not engine.runner.lora_manager.decisions.is_watching
    return answers, taken, {request_id: task for request_id, task in led}


def check(
    reference: Reference,
    requests: Sequence[Request],
    expected: Sequence[Generated],
    answers: Sequence[Answer],
    taken: Sequence[Taken],
    led: Led,
) -> int:
    """How many decisions were compared. Those of cached tokens must be missing, and no others."""
    assert set(led) == {answer.request_id for answer, request in zip(answers, requests, strict=True) if request[1]}
    compared = 0
    for index, (request, wanted, answer, found) in enumerate(zip(requests, expected, answers, taken, strict=True)):
        assert answer.tokens == wanted.tokens
        assert (found is None) == (index % 2 == 1)
        if request[1] is None:
            assert found is None or set(map(str, found)) == {"None"}
            continue
        weights = reference.load(request[1])[1].decide(wanted.pooled)
        at_prompt = weights[len(request[0]) - 1]
        assert led[answer.request_id] == (TASKS[int(at_prompt.argmax())] if bool(at_prompt.any()) else None)
        if found is None:
            continue
        own = [[(int(row.argmax()), 1.0)] if bool(row.any()) else [] for row in weights]
        assert len(own) == len(found)
        assert found == [None] * answer.cached + own[answer.cached :]
        compared += len(own) - answer.cached
    return compared


def test_a_mixed_batch_and_the_same_from_the_prefix_cache(
    reference: Reference, requests: list[Request], expected: list[Generated]
) -> None:
    with open_engine(reference.model_dir, reference.bank.root, enable_prefix_caching=True) as engine:
        answers, taken, led = watched(engine, requests)
        assert check(reference, requests, expected, answers, taken, led) > 300
        found = {str(decision) for one in taken if one is not None for decision in one}
        assert found == {"None", "[]", "[(0, 1.0)]", "[(1, 1.0)]"}, "the prompts do not reach every decision"
        answers, taken, led = watched(engine, requests)
        assert sum(answer.cached > 0 for answer in answers) > len(requests) // 2
        check(reference, requests, expected, answers, taken, led)


def test_chunks_and_preemption(reference: Reference, requests: list[Request], expected: list[Generated]) -> None:
    """Few tokens a step, and a cache that does not hold the batch."""
    options = {"max_num_batched_tokens": 40, "max_num_seqs": 8, "max_model_len": 128, "num_gpu_blocks_override": 12}
    preempted: list[str] = []
    with open_engine(reference.model_dir, reference.bank.root, **options) as engine:
        scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
        preempt = scheduler._preempt_request

        def count(request: Any, *args: Any, **kwargs: Any) -> None:
            preempted.append(request.request_id)
            preempt(request, *args, **kwargs)

        scheduler._preempt_request = count
        answers, taken, led = watched(engine, requests)
    assert preempted
    check(reference, requests, expected, answers, taken, led)
