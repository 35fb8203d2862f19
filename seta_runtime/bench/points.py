"""The loads that are measured: the same prompts for every variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DECODE_TOKENS = 64
PREFILL_PROMPTS = 16
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Point:
    """`batch` prompts at once, each of `prompt_tokens` (0: as is), `new_tokens` generated; mixed generations."""

    name: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    is_mixed: bool = False

    @property
    def is_prefill(self) -> bool:
        return self.prompt_tokens > 0


POINTS = (
    Point("decode_1", 1, 0, DECODE_TOKENS),
    Point("decode_8", 8, 0, DECODE_TOKENS),
    Point("decode_32", 32, 0, DECODE_TOKENS),
    Point("prefill", PREFILL_PROMPTS, PREFILL_TOKENS, 1),
)
MIXED = Point("mixed_8", 8, 0, DECODE_TOKENS, is_mixed=True)


def prompts_for(point: Point, rendered: Sequence[list[int]]) -> list[list[int]]:
    """Token ids of the point's prompts, from rendered task prompts; repeated to the wanted length for prefill."""
    picked = [rendered[i % len(rendered)] for i in range(point.batch)]
    if not point.is_prefill:
        return picked
    return [(ids * (point.prompt_tokens // len(ids) + 1))[: point.prompt_tokens] for ids in picked]
