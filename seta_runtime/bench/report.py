"""The benchmark's numbers: paired ratios, tables, one JSON file, one page of plots."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from adapters.bank import Bank
from adapters.progress import stdout
from seta_runtime.bench.plot import page
from seta_runtime.bench.variants import KV_CACHE_BYTES

Rates = dict[str, dict[str, list[float]]]


def ratio(rates: Rates, one: str, other: str, point: str, other_point: str | None = None) -> float | None:
    """Median over rounds of `one / other`, each pair from the same round; None where either was not measured."""
    top, bottom = rates.get(one, {}).get(point), rates.get(other, {}).get(other_point or point)
    if not top or not bottom:
        return None
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def ratios(rates: Rates) -> dict[str, dict[str, float]]:
    """The figures by name; points that were not measured are left out."""
    pairs = {
        "routed_vs_base": ("routed", "plain"),
        "base_routed_vs_base": ("base_routed", "plain"),
        "routed_vs_vllm_lora": ("routed", "vllm_lora"),
        "base_vs_vllm_lora": ("plain", "vllm_lora"),
        "tasks64_vs_4": ("routed_64_tasks", "routed_4_tasks"),
    }
    points = sorted({point for by_point in rates.values() for point in by_point if point != "mixed_8"})
    found = {name: {p: ratio(rates, *pair, p) for p in points} for name, pair in pairs.items()}
    found["two_generations_vs_one"] = {"decode_8": ratio(rates, "routed", "routed", "mixed_8", "decode_8")}
    return {name: {p: round(v, 3) for p, v in values.items() if v is not None} for name, values in found.items()}


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


def noise(rates: Rates) -> float:
    """How noisy the run was: the largest spread (max - min) / median of plain vLLM's own rates over the rounds."""
    return max((max(v) - min(v)) / statistics.median(v) for v in rates["plain"].values())


def memory(engines: dict[str, Any], bank: Bank) -> dict[str, float]:
    """What the routed engine's process holds more than plain vLLM's, and what that may be made of."""
    manifest = bank.manifest()
    return {
        "over_plain_bytes": engines["routed"]["rss_bytes"] - engines["plain"]["rss_bytes"],
        "bank_bytes": sum(ref.object_bytes for ref in manifest.refs),
        "one_layers_kv_cache_bytes": KV_CACHE_BYTES / (manifest.base.num_layers + 1),
    }


def summarise(rates: Rates, engines: dict[str, Any], server_seconds: list[float], bank: Bank) -> dict[str, Any]:
    """Everything the run found, as the JSON file keeps it."""
    return {
        "server_ready_seconds": {"median": statistics.median(server_seconds), "all": server_seconds},
        "memory": memory(engines, bank),
        "ratios": ratios(rates),
        "tokens_per_second": {
            name: {p: round(statistics.median(v), 1) for p, v in by.items()} for name, by in rates.items()
        },
        "rounds": {name: {p: [round(x, 1) for x in v] for p, v in by.items()} for name, by in rates.items()},
        "engines": engines,
        "added_per_token": {name: round(value, 5) for name, value in added_per_token(bank).items()},
        "noise": round(noise(rates), 3),
    }


def write_report(out: Path, summary: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bench.json"
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    plots = path.with_suffix(".html")
    plots.write_text(page(summary), encoding="utf-8")
    points = sorted({p for by in summary["tokens_per_second"].values() for p in by})
    table = Table("engine", *points, title="tokens per second, median over rounds")
    for name, by_point in summary["tokens_per_second"].items():
        table.add_row(name, *(f"{by_point[p]:.1f}" if p in by_point else "" for p in points))
    stdout.print(table)
    table = Table("ratio", *points, title="median of paired ratios")
    for name, by_point in summary["ratios"].items():
        table.add_row(name, *(f"{by_point[p]:.3f}" if p in by_point else "" for p in points))
    stdout.print(table)
    held = {name: round(value / 2**20, 1) for name, value in summary["memory"].items()}
    load_ms = 1000 * summary["engines"]["routed"]["load_seconds"][-1]
    stdout.print(
        f"server ready after {summary['server_ready_seconds']['median']:.1f} s; the bank's newest generation loaded in "
        f"{load_ms:.0f} ms; {held['over_plain_bytes']} MiB over plain vLLM, the bank has {held['bank_bytes']}, "
        f"one layer's KV cache {held['one_layers_kv_cache_bytes']}",
        highlight=False,
    )
    stdout.print(
        f"plain vLLM's own spread over the rounds: up to {100 * summary['noise']:.0f} %; "
        f"written to {path} and {plots.name}",
        highlight=False,
    )


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
