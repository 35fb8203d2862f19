"""The benchmark's plots: one page, the ratios with their intervals first, then the speeds that they come from."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from adapters.benchmark.style import STYLE
from adapters.benchmark.svg import Bar, bars

TITLES = {
    "routed_vs_base": "Every request routed, to plain vLLM",
    "base_routed_vs_base": "Base requests of a routed engine, to plain vLLM",
    "base_vs_itself": "Plain vLLM, to a second plain vLLM: 1 but for noise",
    "routed_vs_vllm_lora": "Every request routed, to vLLM's own LoRA",
    "base_vs_vllm_lora": "Plain vLLM, to vLLM's own LoRA",
    "two_generations_vs_one": "Two generations in a batch, to one",
}
ROLES = {"plain": "ceiling", "plain_again": "ceiling", "vllm_lora": "other"}
TASKS = re.compile(r"tasks(\d+)_vs_(\d+)")


def page(summary: dict[str, Any]) -> str:
    """A self-contained HTML page of what `report.summarise` returns."""
    ratios = "".join(_ratios(name, values) for name, values in summary["intervals"].items() if values)
    points = list(dict.fromkeys(point for by_point in summary["tokens_per_second"].values() for point in by_point))
    rates = "".join(_rates(point, summary["tokens_per_second"]) for point in points)
    noise = f"Plain vLLM's own speed spread by up to {100 * summary['noise']:.0f} % over the passes of a point."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Speed of the routed layer</title>'
        f"<style>{STYLE}</style></head><body><main><h1>Speed of the routed layer</h1>"
        f'<p class="quiet">Tokens per second, engines in turns of a tenth of a second. {escape(noise)}</p>'
        f'<h2>Ratios, medians over passes, with their 95 % intervals</h2><div class="plots">{ratios}</div>'
        f'<h2>Tokens per second, medians over passes</h2><div class="plots">{rates}</div></main></body></html>\n'
    )


def _title(name: str) -> str:
    tasks = TASKS.fullmatch(name)
    return f"{tasks[1]} tasks, to {tasks[2]} tasks" if tasks else TITLES.get(name, name)


def _ratios(name: str, values: dict[str, Any]) -> str:
    clocks = {point: found["clock"] for point, found in values.items()}
    shown = [Bar(point, c["median"], f"{c['median']:.3f}", "own", (c["low"], c["high"])) for point, c in clocks.items()]
    return bars(_title(name), shown)


def _rates(point: str, rates: dict[str, dict[str, float]]) -> str:
    found = [(engine, by_point[point]) for engine, by_point in rates.items() if point in by_point]
    return bars(point, [Bar(engine, rate, f"{rate:,.1f}", ROLES.get(engine, "own")) for engine, rate in found])
