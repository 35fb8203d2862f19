"""`python -m seta_runtime.bench.big`: a model of a real size, with random weights and a random bank.

Two such engines do not fit beside each other on a small machine, so they run one after another, and that ratio, of
medians, is only as good as the machine is quiet. Inside the routed engine, routed requests and requests to the base
model take turns: that ratio, the median over the turns, stands more noise, and leaves out what the engine itself adds.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from adapters.bank import Bank
from adapters.progress import console, stdout
from seta_runtime.bench.engine_process import EngineProcess
from seta_runtime.bench.points import Point
from seta_runtime.bench.random_model import SHAPES, Shape, random_bank, random_model
from seta_runtime.bench.variants import Asks, Variant

ASKS: dict[str, tuple[Asks, ...]] = {"plain": ("base",), "routed": ("newest", "base")}
POINTS = tuple(Point(f"decode_{batch}", batch) for batch in (1, 4))
DECODE_STEPS, TURNS = 64, 4
"""Tokens of a round, and turns that it is divided into."""
PROMPT_TOKENS = 32
NEEDED_BYTES = {"qwen3-4b": 12 << 30, "tiny": 1 << 30}
"""Of memory for one engine, and of disk for the model and its bank."""


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "qwen3-4b",
    tasks: Annotated[int, typer.Option(min=1, help="Tasks in the bank.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Recorded rounds of each engine.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where the model is made and kept; default: not kept.")] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("build/bench"),
) -> None:
    """Tokens per second routed and plain, memory, and the time of an activation."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is not one of {', '.join(SHAPES)}")
    work = folder or Path(tempfile.mkdtemp(prefix="seta-big-"))
    try:
        model, bank = prepare(work, shape, tasks)  # type: ignore[arg-type]
        found = {variant.name: run(variant, rounds, work) for variant in variants(model, bank)}
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)
    summary = summarise(shape, tasks, found)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"big-{shape}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    stdout.print(_table(summary))


def prepare(work: Path, shape: Shape, num_tasks: int) -> tuple[Path, Bank]:
    """The model and the bank, made where they are missing."""
    model, bank = work / f"model-{shape}", work / f"bank-{shape}-{num_tasks}"
    work.mkdir(parents=True, exist_ok=True)
    _check_room(work, shape)
    if not (model / "model.safetensors.index.json").is_file():
        console.print(f"writing a random {shape}", highlight=False)
        random_model(model, shape)
    if not (bank / "CURRENT").is_file():
        random_bank(bank, model, shape, num_tasks)
    return model, Bank.open(bank)


def variants(model: Path, bank: Bank) -> list[Variant]:
    options = {"skip_tokenizer_init": True}
    return [
        Variant("plain", "plain", str(model), options=options),
        Variant("routed", "routed", str(model), str(bank.root.resolve()), (1,), options=options),
    ]


def run(variant: Variant, rounds: int, work: Path) -> dict[str, Any]:
    """One engine from its start to its end."""
    console.print(f"starting engine {variant.name}", highlight=False)
    start = time.monotonic()
    engine = EngineProcess(variant, prompts(), work / f"{variant.name}.log")
    ready_seconds = time.monotonic() - start
    try:
        rates = {point.name: _rates(engine, point, ASKS[variant.name], rounds) for point in POINTS}
        state = engine.state()
    finally:
        engine.stop()
    return {
        "ready_seconds": round(ready_seconds, 2),
        "activation_seconds": round(sum(engine.ready["load_seconds"]), 3),
        "rss_bytes": state["rss_bytes"],
        "stats": state["stats"],
        "tokens_per_second": rates,
    }


def _rates(engine: EngineProcess, point: Point, asks: Sequence[Asks], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each turn, by what is asked for; the first, unrecorded turns warm the engine up."""
    rates: dict[str, list[float]] = {what: [] for what in asks}
    for number in range(rounds * TURNS + 1):
        for what in asks if number % 2 else asks[::-1]:
            engine.begin(point, number, what)
            found = engine.slice(DECODE_STEPS // TURNS)
            if number:
                rates[what].append(round(found.tokens / found.seconds, 3))
    return rates


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 500, (4, PROMPT_TOKENS), generator=generator).tolist()


def summarise(shape: str, num_tasks: int, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    plain, routed = (found[name]["tokens_per_second"] for name in ("plain", "routed"))
    median = {
        point: {
            "plain": statistics.median(plain[point]["base"]),
            "base_routed": statistics.median(rates["base"]),
            "routed": statistics.median(rates["newest"]),
        }
        for point, rates in routed.items()
    }
    in_turns = {
        point: statistics.median(map(truediv, rates["newest"], rates["base"])) for point, rates in routed.items()
    }
    return {
        "shape": shape,
        "tasks": num_tasks,
        "ratios": {
            "routed_vs_base": {point: round(rates["routed"] / rates["plain"], 3) for point, rates in median.items()},
            "routed_vs_base_routed": {point: round(ratio, 3) for point, ratio in in_turns.items()},
        },
        "tokens_per_second": median,
        "over_plain_bytes": found["routed"]["rss_bytes"] - found["plain"]["rss_bytes"],
        "activation_seconds": found["routed"]["activation_seconds"],
        "engines": found,
    }


def _check_room(work: Path, shape: str) -> None:
    free = shutil.disk_usage(work).free
    if free < NEEDED_BYTES[shape]:
        raise typer.BadParameter(
            f"{free >> 30} GiB are free in {work}, a {shape} takes {NEEDED_BYTES[shape] >> 30}; give another --folder"
        )


def _table(summary: dict[str, Any]) -> Table:
    points = list(summary["tokens_per_second"])
    table = Table("", *points, title=f"{summary['shape']}, {summary['tasks']} tasks: tokens per second")
    for name in ("plain", "base_routed", "routed"):
        table.add_row(name, *(f"{summary['tokens_per_second'][point][name]:.2f}" for point in points))
    for name, label in (
        ("routed_vs_base", "routed / plain, one engine after the other"),
        ("routed_vs_base_routed", "routed / base requests, in turns"),
    ):
        table.add_row(label, *(f"{summary['ratios'][name][point]:.3f}" for point in points))
    table.caption = (
        f"activation {1000 * summary['activation_seconds']:.0f} ms; "
        f"{summary['over_plain_bytes'] / 2**20:.0f} MiB over plain"
    )
    return table


if __name__ == "__main__":
    typer.run(main)
