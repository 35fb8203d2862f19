"""The replicas' counts of what the gate decided, added up, asked for when somebody wants to know."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .polled import Polled

AskReplicas = Callable[[str], Awaitable[list[Any]]]
"""One answer a replica (`CountingEngine.ask_replicas`)."""
TellTasks = Callable[[list[tuple[str, str | None]], float], None]
"""Takes the requests' leading tasks and when they were asked for (`TaskMetrics.tell`)."""


@dataclass(frozen=True)
class HistogramCounts:
    """As `seta_runtime.stats.TensorHistogram` counts: one more than there are buckets."""

    counts: list[int]
    sum: float

    def __add__(self, other: "HistogramCounts") -> "HistogramCounts":
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return HistogramCounts(counts, self.sum + other.sum)


@dataclass(frozen=True)
class GenerationCounts:
    """Tokens of one resident generation."""

    tokens_by_task: dict[str, int]
    base_tokens: int
    entropy: HistogramCounts
    probability: HistogramCounts

    def __add__(self, other: "GenerationCounts") -> "GenerationCounts":
        return GenerationCounts(
            _added(self.tokens_by_task, other.tokens_by_task),
            self.base_tokens + other.base_tokens,
            self.entropy + other.entropy,
            self.probability + other.probability,
        )


@dataclass(frozen=True)
class Counts:
    """Tokens since the engine started; `generations` by the engine's adapter id, those in memory only."""

    by_expert: Mapping[str, int] = field(default_factory=dict)
    base: int = 0
    routed: int = 0
    generations: Mapping[int, GenerationCounts] = field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            _added(self.by_expert, other.by_expert),
            self.base + other.base,
            self.routed + other.routed,
            _added(self.generations, other.generations),
        )


class RoutingCounts(Polled[Counts]):
    """`seta_runtime.stats.RoutingStats` of the replicas, a second old at most unless the engine is busy or dead.

    What the replicas say of single requests (`seta_runtime.leading`) is asked for along with it and handed on.
    """

    def __init__(
        self,
        ask: AskReplicas,
        tell: TellTasks = lambda led, asked_at: None,
        min_age_seconds: float = 1.0,
        patience_seconds: float = 2.0,
    ) -> None:
        async def question() -> Counts:
            asked_at = time.monotonic()
            stats, led = await asyncio.gather(ask("seta_stats"), ask("seta_led"))
            tell([(request_id, task) for replica in led for request_id, task in replica], asked_at)
            first, *others = [_parse(replica) for replica in stats]
            return sum(others, start=first)

        super().__init__(question, Counts(), "the engine's token counts", min_age_seconds, patience_seconds)

    @property
    def by_expert(self) -> Mapping[str, int]:
        return self.value.by_expert

    @property
    def base(self) -> int:
        return self.value.base

    @property
    def total(self) -> int:
        """A token that two experts answered counts once."""
        return self.value.base + self.value.routed


def _added(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    return {**one, **{key: one[key] + count if key in one else count for key, count in other.items()}}


def _parse(worker: dict[str, Any]) -> Counts:
    return Counts(
        worker["tokens_by_expert"],
        worker["base_tokens"],
        worker["routed_tokens"],
        {one["adapter_id"]: _parse_generation(one) for one in worker["generations"]},
    )


def _parse_generation(one: dict[str, Any]) -> GenerationCounts:
    entropy, probability = HistogramCounts(**one["entropy"]), HistogramCounts(**one["probability"])
    return GenerationCounts(one["tokens_by_task"], one["base_tokens"], entropy, probability)
