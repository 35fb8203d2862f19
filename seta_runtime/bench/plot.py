"""The benchmark's plots: one page, the ratios first, then the rates that they come from."""

from __future__ import annotations

from html import escape
from typing import Any

from adapters.benchmark.style import STYLE
from adapters.benchmark.svg import Bar, bars

TITLES = {
    "routed_vs_base": "Every request routed, to plain vLLM",
    "base_routed_vs_base": "Base requests of a routed engine, to plain vLLM",
    "routed_vs_vllm_lora": "Every request routed, to vLLM's own LoRA",
    "base_vs_vllm_lora": "Plain vLLM, to vLLM's own LoRA",
    "tasks64_vs_4": "64 tasks, to 4 tasks",
    "two_generations_vs_one": "Two generations in a batch, to one",
}
ROLES = {"plain": "ceiling", "vllm_lora": "other"}


def page(summary: dict[str, Any]) -> str:
    """A self-contained HTML page of what `report.summarise` returns."""
    ratios = "".join(_ratios(name, values) for name, values in summary["ratios"].items() if values)
    points = sorted({point for by_point in summary["tokens_per_second"].values() for point in by_point})
    rates = "".join(_rates(point, summary["tokens_per_second"]) for point in points)
    noise = f"Plain vLLM's own rates spread by up to {100 * summary['noise']:.0f} % over the rounds."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Speed of the routed layer</title>'
        f"<style>{STYLE}</style></head><body><main><h1>Speed of the routed layer</h1>"
        f'<p class="quiet">Tokens per second, interleaved rounds in one run. {escape(noise)}</p>'
        f'<h2>Ratios, medians over rounds of paired ratios</h2><div class="plots">{ratios}</div>'
        f'<h2>Tokens per second, medians</h2><div class="plots">{rates}</div></main></body></html>\n'
    )


def _ratios(name: str, values: dict[str, float]) -> str:
    return bars(TITLES.get(name, name), [Bar(point, value, f"{value:.3f}", "own") for point, value in values.items()])


def _rates(point: str, rates: dict[str, dict[str, float]]) -> str:
    found = [(engine, by_point[point]) for engine, by_point in rates.items() if point in by_point]
    return bars(point, [Bar(engine, rate, f"{rate:,.1f}", ROLES.get(engine, "own")) for engine, rate in found])
