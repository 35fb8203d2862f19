"""The workers' counts of what the gate decided, asked for when somebody wants to know."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .polled import Polled

AskWorkers = Callable[[str], Awaitable[list[dict[str, Any]]]]


@dataclass(frozen=True)
class HistogramCounts:
    """As `seta_runtime.stats.TensorHistogram` counts: one more than there are buckets."""

    counts: list[int]
    sum: float


@dataclass(frozen=True)
class GenerationCounts:
    """Tokens of one resident generation."""

    tokens_by_task: dict[str, int]
    base_tokens: int
    entropy: HistogramCounts
    probability: HistogramCounts


@dataclass(frozen=True)
class Counts:
    """Tokens since the engine started; `generations` by the engine's adapter id, those in memory only."""

    by_expert: Mapping[str, int] = field(default_factory=dict)
    base: int = 0
    routed: int = 0
    generations: Mapping[int, GenerationCounts] = field(default_factory=dict)


class RoutingCounts(Polled[Counts]):
    """`seta_runtime.stats.RoutingStats` of the workers, a second old at most unless the engine is busy or dead."""

    def __init__(self, ask: AskWorkers, min_age_seconds: float = 1.0, patience_seconds: float = 2.0) -> None:
        async def question() -> Counts:
            # Under tensor parallelism every worker sees every token, so the first one speaks for all.
            return _parse((await ask("seta_stats"))[0])

        super().__init__(question, Counts(), "the workers' token counts", min_age_seconds, patience_seconds)

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
