"""What is kept of the gate's decisions: the very ones that the layers used, by request and position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seta_runtime.decisions import MAX_WATCHED, Decisions, RunningRequest
from seta_runtime.leading import LeadingTasks
from seta_runtime.manager import GenerationWorkerManager
from seta_runtime.resident import ResidentGeneration
from tests.seta_runtime.random_experts import random_gate, random_generation


def generation_of(num_tasks: int = 3, keep: int = 1) -> ResidentGeneration:
    return random_generation(1, random_gate(16, 4, num_tasks, keep=keep), torch.eye(num_tasks))


def one_hot(*tasks: int) -> Tensor:
    """Weights of three tasks; -1 is base."""
    weights = torch.zeros(len(tasks), 3)
    for row, task in enumerate(tasks):
        if task >= 0:
            weights[row, task] = 1
    return weights


def watching(*ids: str) -> Decisions:
    decisions = Decisions()
    for request_id in ids:
        decisions.watch(request_id)
    return decisions


def note(
    decisions: Decisions,
    weights: Tensor,
    *requests: tuple[str, range, int],
    rows: list[int] | None = None,
    keep: int = 1,
) -> None:
    decisions.running = lambda: [RunningRequest(*one) for one in requests]
    decisions.note(generation_of(keep=keep), None if rows is None else torch.tensor(rows), weights)


def test_each_request_gets_its_own_rows() -> None:
    decisions = watching("a", "b")
    note(decisions, one_hot(0, -1, 2, 1), ("a", range(0, 2), 0), ("unwatched", range(2, 3), 0), ("b", range(3, 4), 0))
    assert decisions.take("a", 0, 2) == [[(0, 1.0)], []]
    assert decisions.take("b", 0, 1) == [[(1, 1.0)]]
    assert decisions.take("unwatched", 0, 1) is None


def test_rows_of_several_generations_in_one_step() -> None:
    """This generation has rows 2, 3 and 6; row 0 is the base model's and the others another generation's."""
    decisions = watching("base", "a", "other", "b")
    requests = ("base", range(0, 2), 0), ("a", range(2, 4), 5), ("other", range(4, 6), 0), ("b", range(6, 7), 9)
    note(decisions, one_hot(0, 1, 2), *requests, rows=[2, 3, 6])
    assert decisions.take("a", 5, 7) == [[(0, 1.0)], [(1, 1.0)]]
    assert decisions.take("b", 9, 10) == [[(2, 1.0)]]
    assert decisions.take("other", 0, 2) == [None, None] == decisions.take("base", 0, 2)


def test_chunks_decoding_and_what_the_cache_held() -> None:
    decisions = watching("a")
    note(decisions, one_hot(0, 0), ("a", range(0, 2), 3))  # three tokens came from the prefix cache
    note(decisions, one_hot(2, 1, -1), ("a", range(1, 3), 5), rows=[0, 1, 2])
    for position in range(7, 50):
        note(decisions, one_hot(position % 3), ("a", range(0, 1), position))
    found = decisions.take("a", 0, 50)
    assert found is not None
    assert found[:7] == [None] * 3 + [[(0, 1.0)], [(0, 1.0)], [(1, 1.0)], []]
    assert found[7:] == [[(position % 3, 1.0)] for position in range(7, 50)]


def test_a_token_that_is_run_again_counts_once() -> None:
    """After a preemption the request starts over; a step too many after the last token is not asked for."""
    decisions = watching("a")
    note(decisions, one_hot(0, 0, 0), ("a", range(0, 3), 0))
    note(decisions, one_hot(1, 1, 1, 2), ("a", range(0, 4), 0))
    assert decisions.take("a", 1, 3) == [[(1, 1.0)], [(1, 1.0)]]


def test_a_mixture_keeps_every_weight() -> None:
    decisions = watching("a")
    note(decisions, torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0], [0, 0, 0]]), ("a", range(0, 3), 0), keep=2)
    assert decisions.take("a", 0, 3) == [[(2, 0.75), (0, 0.25)], [(1, 1.0)], []]


def test_what_is_not_there_is_none() -> None:
    decisions = watching("a", "b")
    assert decisions.take("a", 2, 4) == [None, None]
    note(decisions, one_hot(0), ("b", range(0, 1), 0))
    assert decisions.take("b", 0, 3) == [[(0, 1.0)], None, None]


def test_nothing_is_kept_of_what_was_taken_or_forgotten() -> None:
    decisions = watching("a", "b")
    assert decisions.is_watching
    decisions.take("a", 0, 1)
    decisions.forget("b")
    decisions.forget("never watched")
    assert not decisions.is_watching
    assert decisions.take("a", 0, 1) is None


def test_the_oldest_give_way() -> None:
    decisions = watching(*(str(i) for i in range(MAX_WATCHED + 2)))
    assert decisions.take("1", 0, 1) is None and decisions.take("2", 0, 1) == [None]


@pytest.mark.parametrize("version", [1, 2])
def test_the_running_requests_of_both_model_runners(version: int) -> None:
    """V2 runs on GPUs only, so here it is a stand-in with the fields that vLLM's has."""
    ids, starts, computed = ["chatcmpl-x-0a1b2c3d", "y-0a1b2c3d"], np.array([0, 5, 6, 6]), np.array([32, 7, 0])
    prompts = np.array([37, 7, 0])  # the first's prompt ends in this step, the second's has
    manager: Any = object.__new__(GenerationWorkerManager)
    manager._knows_runner = False
    manager._adapter_manager = SimpleNamespace(router=SimpleNamespace(decisions=Decisions(), leading=LeadingTasks()))
    runner: Any
    if version == 1:
        batch = SimpleNamespace(req_ids=ids, num_computed_tokens_cpu=computed, num_prompt_tokens=prompts)
        runner = SimpleNamespace(input_batch=batch, query_start_loc=SimpleNamespace(np=starts))
        manager.watch(runner, "y")
    else:
        made = SimpleNamespace(
            req_ids=ids, query_start_loc_np=starts, num_computed_tokens_np=computed, idx_mapping_np=np.array([2, 0])
        )
        states = SimpleNamespace(prompt_len=SimpleNamespace(np=prompts[[1, 2, 0]]))
        runner = SimpleNamespace(prepare_inputs=lambda scheduled, *, tokens: made, req_states=states)
        manager.watch(runner, "y")
        assert runner.prepare_inputs("scheduled", tokens=6) is made
    router = manager._adapter_manager.router
    running = [RunningRequest("chatcmpl-x", range(0, 5), 32), RunningRequest("y", range(5, 6), 7)]
    assert list(router.decisions.running()) == running
    assert router.leading.ended() == [("chatcmpl-x", 4)]
    assert manager.led(runner) == []
