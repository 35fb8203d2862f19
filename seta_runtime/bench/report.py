"""The benchmark's numbers: ratios with their intervals, tables, one JSON file, one page of plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from adapters.bank import Bank
from adapters.progress import stdout
from seta_runtime.bench.groups import Group
from seta_runtime.bench.paired import Ratio, disturbance, spread, tokens_per_second
from seta_runtime.bench.plot import page
from seta_runtime.bench.turns import Pass
from seta_runtime.bench.variants import KV_CACHE_BYTES

Measured = dict[tuple[str, str], list[Pass]]
"""(group, point) → its passes, in the order in which they were measured."""


def ratios(measured: Measured, groups: Sequence[Group]) -> dict[str, dict[str, Ratio]]:
    """Name of the ratio → point → ratio."""
    found: dict[str, dict[str, Ratio]] = {}
    for group in groups:
        for name, (one, other) in group.ratios.items():
            found[name] = {p.name: Ratio.of(measured[group.name, p.name], one, other) for p in group.points}
    return found


def rates(measured: Measured) -> dict[str, dict[str, list[float]]]:
    """Tokens per second of each pass: engine → point; of an engine in several groups, those of the first group."""
    found: dict[str, dict[str, list[float]]] = {}
    for (_, point), passes in measured.items():
        for engine in passes[0]:
            found.setdefault(engine, {}).setdefault(point, tokens_per_second(passes, engine))
    return found


def added_per_token(bank: Bank) -> dict[str, float]:
    """Bytes read and FLOPs done for one routed token beyond the base model's, and their share of the base's.

    The gate: projection, whitening, read-out. The experts: one task's sub-blocks, each value one multiply and one add.
    """
    manifest = bank.manifest()
    base = manifest.base
    gate = bank.load_gate(manifest)
    width = gate["projection"].shape[1]
    num_tasks = max(1, len(manifest.tasks))
    values = sum(2 * e.num_blocks * e.rank * manifest.block_size for e in manifest.experts) / num_tasks
    gate_values = base.hidden_size * width + width * width + 2 * width * len(manifest.tasks)
    layer = sum(
        _product(base.target_dims(t))
        for t in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    )
    base_values = base.num_layers * layer + base.vocab_size * base.hidden_size
    return {
        "expert_bytes": 2 * values,
        "gate_bytes": 4 * gate_values,
        "flops": 2 * (values + gate_values),
        "share_of_base_bytes": (2 * values + 4 * gate_values) / (2 * base_values),
        "share_of_base_flops": (values + gate_values) / base_values,
    }


def noise(plain: dict[str, list[float]]) -> float:
    """How noisy the machine was: the largest spread of plain vLLM's own speed over the passes of a point."""
    return max(spread(values) for values in plain.values())


def memory(engines: dict[str, Any], bank: Bank) -> dict[str, float]:
    """What the routed engine's process holds more than plain vLLM's, and what that may be made of."""
    manifest = bank.manifest()
    return {
        "over_plain_bytes": engines["routed"]["rss_bytes"] - engines["plain"]["rss_bytes"],
        "bank_bytes": sum(ref.object_bytes for ref in manifest.refs),
        "one_layers_kv_cache_bytes": KV_CACHE_BYTES / (manifest.base.num_layers + 1),
    }


def summarise(
    measured: Measured, groups: Sequence[Group], engines: dict[str, Any], server_seconds: list[float], bank: Bank
) -> dict[str, Any]:
    """Everything the run found, as the JSON file keeps it; `ratios` are the medians, `intervals` all about them."""
    found, speeds = ratios(measured, groups), rates(measured)
    return {
        "server_ready_seconds": {"median": statistics.median(server_seconds), "all": server_seconds},
        "memory": memory(engines, bank),
        "ratios": {name: {p: round(r.clock.median, 4) for p, r in by.items()} for name, by in found.items()},
        "intervals": {name: {p: _rounded(asdict(r)) for p, r in by.items()} for name, by in found.items()},
        "tokens_per_second": {
            name: {p: round(statistics.median(v), 1) for p, v in by.items()} for name, by in speeds.items()
        },
        "disturbance": {
            f"{group} {point}": {engine: disturbance(passes, engine) for engine in passes[0]}
            for (group, point), passes in measured.items()
        },
        "engines": engines,
        "added_per_token": {name: round(value, 5) for name, value in added_per_token(bank).items()},
        "noise": round(noise(speeds["plain"]), 3),
    }


def write_report(out: Path, summary: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bench.json"
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    plots = path.with_suffix(".html")
    plots.write_text(page(summary), encoding="utf-8")
    stdout.print(_speeds(summary))
    stdout.print(_ratios(summary))
    held = {name: round(value / 2**20, 1) for name, value in summary["memory"].items()}
    load_ms = 1000 * summary["engines"]["routed"]["load_seconds"][-1]
    stdout.print(
        f"server ready after {summary['server_ready_seconds']['median']:.1f} s; the bank's newest generation loaded in "
        f"{load_ms:.0f} ms; {held['over_plain_bytes']} MiB over plain vLLM, the bank has {held['bank_bytes']}, "
        f"one layer's KV cache {held['one_layers_kv_cache_bytes']}",
        highlight=False,
    )
    stdout.print(
        f"plain vLLM's own speed spread by up to {100 * summary['noise']:.0f} % over the passes of a point; "
        f"written to {path} and {plots.name}",
        highlight=False,
    )


def _speeds(summary: dict[str, Any]) -> Table:
    points = list(dict.fromkeys(p for by in summary["tokens_per_second"].values() for p in by))
    table = Table("engine", *points, title="tokens per second, median over passes")
    for name, by_point in summary["tokens_per_second"].items():
        table.add_row(name, *(f"{by_point[p]:.1f}" if p in by_point else "" for p in points))
    return table


def _ratios(summary: dict[str, Any]) -> Table:
    """Narrow enough for 80 columns, which is what a log file has."""
    title = "ratios of speeds in the same pass, by the clock"
    columns = ("ratio", "point", "median", "95 %", "all time", "CPU", "passes")
    table = Table(*columns, title=title, box=None, padding=(0, 1, 0, 0))
    for name, by_point in summary["intervals"].items():
        for number, (point, found) in enumerate(by_point.items()):
            clock = found["clock"]
            table.add_row(
                "" if number else name,
                point,
                f"{clock['median']:.3f}",
                f"{clock['low']:.3f}-{clock['high']:.3f}",
                f"{found['total']:.3f}",
                f"{found['cpu']['median']:.3f}",
                str(found["num_passes"]),
            )
    return table


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_rounded(value) for value in values]
    return round(values, 4)


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
