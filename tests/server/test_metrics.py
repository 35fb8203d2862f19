"""The token counts behind `/metrics`: scraping must not load the engine, nor wait for it."""

import asyncio
from typing import Any

from server.metrics import ExpertTokens

COUNTS = {"tokens_by_expert": {"a.unique": 5}, "base_tokens": 2, "routed_tokens": 5}


class Workers:
    """Stands for the engine's workers and counts the questions."""

    def __init__(self, answer: Any = COUNTS, seconds: float = 0.0) -> None:
        self.num_asked = 0
        self._answer = answer
        self._seconds = seconds

    async def __call__(self, method: str) -> list[dict[str, Any]]:
        assert method == "seta_stats"
        self.num_asked += 1
        await asyncio.sleep(self._seconds)
        if isinstance(self._answer, Exception):
            raise self._answer
        return [self._answer, self._answer]


def test_counts_of_the_first_worker() -> None:
    tokens = ExpertTokens(Workers())
    asyncio.run(tokens.refresh())
    assert (tokens.by_expert, tokens.base) == ({"a.unique": 5}, 2)


def test_many_scrapes_are_one_question() -> None:
    workers = Workers(seconds=0.05)
    tokens = ExpertTokens(workers)

    async def scrape() -> None:
        await asyncio.gather(*(tokens.refresh() for _ in range(50)))
        await tokens.refresh()

    asyncio.run(scrape())
    assert workers.num_asked == 1
    assert tokens.base == 2


def test_after_a_while_it_asks_again() -> None:
    workers = Workers()
    tokens = ExpertTokens(workers, min_age_seconds=0.05)

    async def scrape() -> None:
        await tokens.refresh()
        await asyncio.sleep(0.1)
        await tokens.refresh()

    asyncio.run(scrape())
    assert workers.num_asked == 2


def test_a_busy_engine_is_not_waited_for() -> None:
    workers = Workers(seconds=0.3)
    tokens = ExpertTokens(workers, patience_seconds=0.02)

    async def scrape() -> tuple[int, int]:
        await tokens.refresh()
        early = tokens.base
        await asyncio.sleep(0.4)
        return early, tokens.base

    assert asyncio.run(scrape()) == (0, 2)
    assert workers.num_asked == 1


def test_an_engine_that_fails_leaves_the_last_counts() -> None:
    tokens = ExpertTokens(Workers(RuntimeError("dead")))
    asyncio.run(tokens.refresh())
    assert (tokens.by_expert, tokens.base) == ({}, 0)
