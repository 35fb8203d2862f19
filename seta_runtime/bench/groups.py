"""Which engines are compared with which: those of a group take turns, and ratios are of engines of one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seta_runtime.bench.points import DECODE, ONE_PROMPT, PREFILL, Point


@dataclass(frozen=True)
class Group:
    """`ratios`: name → (the engine that is measured, the engine it is measured against)."""

    name: str
    engines: tuple[str, ...]
    points: tuple[Point, ...]
    ratios: dict[str, tuple[str, str]]

    def limited_to(self, names: Sequence[str]) -> Group:
        """Without the engines that are not among the names, and without their ratios."""
        kept = tuple(name for name in self.engines if name in names)
        ratios = {name: pair for name, pair in self.ratios.items() if set(pair) <= set(kept)}
        return Group(self.name, kept, self.points, ratios)

    def at(self, names: Sequence[str]) -> Group:
        """With those points only."""
        return Group(self.name, self.engines, tuple(point for point in self.points if point.name in names), self.ratios)


def groups(sizes: Sequence[int]) -> list[Group]:
    """All comparisons; `sizes`: tasks of the synthetic banks, each compared with the smallest."""
    few, *more = sorted(sizes)
    return [
        Group(
            "base",
            ("plain", "routed", "base_routed", "plain_again"),
            (*DECODE, PREFILL),
            {
                "routed_vs_base": ("routed", "plain"),
                "base_routed_vs_base": ("base_routed", "plain"),
                "base_vs_itself": ("plain_again", "plain"),
            },
        ),
        Group(
            "generations",
            ("routed", "two_generations"),
            tuple(point for point in DECODE if point.batch == 8),
            {"two_generations_vs_one": ("two_generations", "routed")},
        ),
        Group(
            "lora",
            ("routed", "plain", "vllm_lora"),
            (*DECODE, ONE_PROMPT),
            {"routed_vs_vllm_lora": ("routed", "vllm_lora"), "base_vs_vllm_lora": ("plain", "vllm_lora")},
        ),
        Group(
            "tasks",
            tuple(tasks_name(size) for size in (few, *more)),
            (*DECODE, PREFILL),
            {f"tasks{size}_vs_{few}": (tasks_name(size), tasks_name(few)) for size in more},
        ),
    ]


def tasks_name(size: int) -> str:
    """The engine that serves a synthetic bank of so many tasks."""
    return f"routed_{size}_tasks"
