"""What is asked of others while scraping: it must not load them, nor wait for them."""

import asyncio
from typing import Any

from server.routing_counts import Counts, RoutingCounts
from tests.server.house import COUNTS


class Workers:
    """Stands for the engine's replicas and counts the questions."""

    def __init__(self, answer: Any = COUNTS, seconds: float = 0.0, num_replicas: int = 1) -> None:
        self._num_replicas = num_replicas
        self.num_asked = 0
        self._answer = answer
        self._seconds = seconds

    async def __call__(self, method: str) -> list[Any]:
        if method == "seta_led":
            return [[]] * self._num_replicas
        assert method == "seta_stats"
        self.num_asked += 1
        await asyncio.sleep(self._seconds)
        if isinstance(self._answer, Exception):
            raise self._answer
        return [self._answer] * self._num_replicas


def test_replicas_are_added_up() -> None:
    """One that has not got a generation yet, or no token of an expert, leaves the other's counts as they are."""
    other = COUNTS | {"tokens_by_expert": {"new": 5}, "base_tokens": 1, "routed_tokens": 5, "generations": []}

    async def replicas(method: str) -> list[Any]:
        return [COUNTS, COUNTS, other] if method == "seta_stats" else [[], [], []]

    counts = RoutingCounts(replicas)
    asyncio.run(counts.refresh())
    assert (counts.base, counts.total) == (121, 206)
    assert counts.by_expert == {name: 2 * n for name, n in COUNTS["tokens_by_expert"].items()} | {"new": 5}
    one, both = COUNTS["generations"][0], counts.value.generations[1]
    assert (both.base_tokens, both.entropy.sum) == (2 * one["base_tokens"], 2 * one["entropy"]["sum"])
    assert both.tokens_by_task == {name: 2 * n for name, n in one["tokens_by_task"].items()}
    assert both.probability.counts == [2 * n for n in one["probability"]["counts"]]


def test_counts() -> None:
    counts = RoutingCounts(Workers())
    assert counts.age_seconds is None
    asyncio.run(counts.refresh())
    assert (counts.base, counts.total) == (60, 100)
    assert counts.by_expert == COUNTS["tokens_by_expert"]
    assert counts.value.generations[1].entropy.sum == 0.4
    assert counts.age_seconds is not None and counts.age_seconds >= 0


def test_many_scrapes_are_one_question() -> None:
    workers = Workers(seconds=0.05)
    counts = RoutingCounts(workers)

    async def scrape() -> None:
        await asyncio.gather(*(counts.refresh() for _ in range(50)))
        await counts.refresh()

    asyncio.run(scrape())
    assert workers.num_asked == 1
    assert counts.base == 60


def test_after_a_while_it_asks_again() -> None:
    workers = Workers()
    counts = RoutingCounts(workers, min_age_seconds=0.05)

    async def scrape() -> None:
        await counts.refresh()
        await asyncio.sleep(0.1)
        await counts.refresh()

    asyncio.run(scrape())
    assert workers.num_asked == 2


def test_a_busy_engine_is_waited_for_once() -> None:
    """The next scrapes get the last values at once; the answer is taken when it comes."""
    workers = Workers(seconds=0.5)
    counts = RoutingCounts(workers, min_age_seconds=0.0, patience_seconds=0.05)

    async def scrape() -> tuple[list[bool], int, int]:
        await counts.refresh()
        later = [asyncio.create_task(counts.refresh()) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)  # enough for what does not wait
        are_done, early = [task.done() for task in later], counts.base
        await asyncio.sleep(0.6)
        return are_done, early, counts.base

    assert asyncio.run(scrape()) == ([True] * 3, 0, 60)
    assert workers.num_asked == 1


def test_an_engine_that_fails_leaves_the_last_counts() -> None:
    workers = Workers()
    counts = RoutingCounts(workers, min_age_seconds=0.0)

    async def scrape() -> None:
        await counts.refresh()
        workers._answer = RuntimeError("dead")
        await counts.refresh()

    asyncio.run(scrape())
    assert workers.num_asked == 2
    assert counts.base == 60


def test_before_the_first_answer_there_is_nothing() -> None:
    counts = RoutingCounts(Workers(RuntimeError("dead")))
    asyncio.run(counts.refresh())
    assert counts.value == Counts()
    assert counts.age_seconds is None
