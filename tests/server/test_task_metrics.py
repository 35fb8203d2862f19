"""Requests and latency by leading task: nothing is counted twice, and nothing is lost whenever the workers answer."""

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import task_metrics
from server.request_metrics import RequestMeter, RequestMetrics
from server.routing_counts import RoutingCounts
from server.task_metrics import TaskMetrics
from tests.server.house import COUNTS
from tests.server.test_metrics_requests import CHAT, answers, output


def counted(tasks: TaskMetrics) -> dict[tuple[str, str], tuple[int, int, int]]:
    """First tokens, gaps and durations by generation and task."""
    kinds = tasks.latencies.items()
    return {key: (one.first_token.total, one.between_tokens.total, one.duration.total) for key, one in kinds}


def serve(requests: RequestMetrics, *ids: str, generation: str = "4", during: Any = None, fails: bool = False) -> None:
    """One HTTP request whose answer takes an engine request for each id, of three tokens."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for request_id in ids:
            timer = requests.timer(generation, request_id)
            for index in range(3):
                timer.see(output({0: 1}))
                if during is not None and index == 1:
                    during()
        if fails:
            raise KeyError(ids)
        await answers(200, (b"{}", False), generation=generation)(scope, receive, send)

    async def drop(message: Any) -> None:
        pass

    scope = {"type": "http", "path": CHAT, "method": "POST"}
    with suppress(KeyError):
        asyncio.run(RequestMeter(app, requests)(scope, None, drop))  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["during the answer", "after it"])
def test_a_request_is_its_tasks_whenever_that_is_told(when: str) -> None:
    requests = RequestMetrics()
    tasks = requests.tasks

    def tell() -> None:
        tasks.tell([("a", "foods")], time.monotonic())

    serve(requests, "a", during=tell if when == "during the answer" else None)
    if when == "after it":
        assert counted(tasks) == {} and not tasks.outcomes
        tell()
    assert counted(tasks) == {("4", "foods"): (1, 2, 1)}
    assert tasks.outcomes == {("4", "foods", "ok"): 1}
    assert tasks.latencies["4", "foods"].duration.sum == requests.of("4").duration.sum
    tell()
    assert counted(tasks) == {("4", "foods"): (1, 2, 1)}


def test_base_requests_wait_for_nobody_and_base_decisions_count_with_their_generation() -> None:
    requests = RequestMetrics()
    serve(requests, "plain", generation="base")
    serve(requests, "left to base")
    requests.tasks.tell([("left to base", None)], time.monotonic())
    assert counted(requests.tasks) == {("base", "base"): (1, 2, 1), ("4", "base"): (1, 2, 1)}


def test_an_answer_of_several_prompts_is_one_request() -> None:
    requests = RequestMetrics()
    serve(requests, "a-0", "a-1")
    requests.tasks.tell([("a-0", "foods"), ("a-1", "icd10")], time.monotonic())
    assert counted(requests.tasks) == {("4", "foods"): (1, 2, 1), ("4", "icd10"): (1, 2, 0)}
    assert requests.tasks.outcomes == {("4", "foods", "ok"): 1}


def test_several_choices_are_one_request_for_the_engine_too() -> None:
    requests = RequestMetrics()
    serve(requests, "a_b")
    requests.tasks.tell([("0_a_b", "foods"), ("1_a_b", "foods")], time.monotonic())
    assert requests.tasks.outcomes == {("4", "foods", "ok"): 1}


def test_clients_may_give_two_requests_one_id() -> None:
    requests = RequestMetrics()
    serve(requests, "same")
    serve(requests, "same", fails=True)
    requests.tasks.tell([("same", "foods")], time.monotonic())
    assert requests.tasks.outcomes == {("4", "foods", "ok"): 1, ("4", "foods", "error"): 1}
    assert not requests.tasks._waiting


def test_what_the_workers_do_not_know_is_given_up_once_it_has_ended() -> None:
    """Not before: a request that runs may be in the next answer."""
    requests = RequestMetrics()
    asked_at = time.monotonic()
    serve(requests, "lost", during=lambda: requests.tasks.tell([], time.monotonic()))
    requests.tasks.tell([], asked_at)
    assert counted(requests.tasks) == {}
    requests.tasks.tell([], time.monotonic() + 1)
    assert counted(requests.tasks) == {("4", "none"): (1, 2, 1)}
    requests.tasks.tell([("lost", "foods")], time.monotonic() + 1)
    assert list(counted(requests.tasks)) == [("4", "none")]


def test_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded, and all of it is counted in the end."""
    monkeypatch.setattr(task_metrics, "MAX_ENDED", 3)
    requests = RequestMetrics()
    for index in range(10):
        serve(requests, str(index))
    assert len(requests.tasks._waiting) == len(requests.tasks._ended) == 3
    requests.tasks.tell([(str(index), "foods") for index in range(10)], time.monotonic() + 1)
    assert requests.tasks.outcomes == {("4", "none", "ok"): 7, ("4", "foods", "ok"): 3}
    assert not requests.tasks._waiting and not requests.tasks._ended


def test_a_generation_that_has_left_memory_takes_its_tasks_along() -> None:
    requests = RequestMetrics()
    for generation in ("3", "4"):
        serve(requests, generation, generation=generation)
    requests.tasks.tell([("3", "foods"), ("4", "foods")], time.monotonic())
    requests.keep_only(["4", "base", "none"])
    assert list(counted(requests.tasks)) == [("4", "foods")]
    assert list(requests.tasks.outcomes) == [("4", "foods", "ok")]


def test_what_never_reached_the_engine_has_no_task() -> None:
    requests = RequestMetrics()
    serve(requests)
    requests.tasks.tell([], time.monotonic() + 1)
    assert counted(requests.tasks) == {} and not requests.tasks.outcomes
    assert requests.outcomes == {("4", "ok"): 1}


@given(st.lists(st.sampled_from(["serve", "tell", "miss", "base", "fail"]), max_size=12))
def test_tasks_add_up_to_their_generation(steps: list[str]) -> None:
    requests = RequestMetrics()
    tasks = requests.tasks
    untold: list[str] = []
    for index, step in enumerate(steps):
        if step in ("tell", "miss"):
            tasks.tell([(one, "foods") for one in untold] if step == "tell" else [], time.monotonic() + 1)
            untold = []
        else:
            serve(requests, str(index), generation="base" if step == "base" else "4", fails=step == "fail")
            untold.append(str(index))
    tasks.tell([], time.monotonic() + 1)
    for generation, own in requests.latencies.items():
        mine = [one for (of, _), one in tasks.latencies.items() if of == generation]
        for kind in ("first_token", "between_tokens", "duration"):
            assert sum(getattr(one, kind).total for one in mine) == getattr(own, kind).total
    assert sum(tasks.outcomes.values()) == sum(requests.outcomes.values())


def test_the_workers_are_asked_along_with_their_counts() -> None:
    told: list[Any] = []

    async def replicas(method: str) -> list[Any]:
        return [COUNTS, COUNTS] if method == "seta_stats" else [[["a", "foods"]], [["b", None]]]

    before = time.monotonic()
    asyncio.run(RoutingCounts(replicas, lambda led, asked_at: told.append((led, asked_at))).refresh())
    ((led, asked_at),) = told
    assert led == [("a", "foods"), ("b", None)]
    assert before <= asked_at <= time.monotonic()
