"""The loads that are measured: the same prompts for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DECODE_TOKENS = 128
"""A running batch is given up after so many new tokens a request and a fresh one begun."""
PREFILL_PROMPTS = 16
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Point:
    """What one step of a slice is.

    prompt_tokens 0: `batch` requests, their prompts as they are, run, and a step gives each of them one token.
    Otherwise a step is the prefill of `batch` prompts of `prompt_tokens` each.
    """

    name: str
    batch: int
    prompt_tokens: int = 0

    @property
    def is_prefill(self) -> bool:
        return self.prompt_tokens > 0

    @property
    def tokens_per_step(self) -> int:
        return self.batch * max(1, self.prompt_tokens)


DECODE = tuple(Point(f"decode_{batch}", batch) for batch in (1, 8, 32))
PREFILL = Point("prefill", 2, PREFILL_TOKENS)
ONE_PROMPT = Point("prefill", 1, PREFILL_TOKENS)
"""For comparisons with an engine that takes minutes for a prompt."""


def prompts_for(point: Point, rendered: Sequence[list[int]], number: int) -> list[list[int]]:
    """Token ids of the prompts of the point's batch or prefill step `number`.

    Successive batches take successive prompts; the prompts of prefill steps repeat after 16, each made as long as the
    point says by repeating it.
    """
    count = min(len(rendered), PREFILL_PROMPTS) if point.is_prefill else len(rendered)
    picked = [rendered[(number * point.batch + i) % count] for i in range(point.batch)]
    if not point.is_prefill:
        return picked
    return [(ids * (point.prompt_tokens // len(ids) + 1))[: point.prompt_tokens] for ids in picked]
