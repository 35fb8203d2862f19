"""`python -m seta_runtime.bench.big`: a model of a real size, with random weights and a random bank.

Two such engines do not fit beside each other on a small machine, so they run one after another, each a few rounds, and
the ratio is one of medians: it is only as good as the machine is quiet.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
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
from seta_runtime.bench.variants import Variant

POINTS = tuple(Point(f"decode_{batch}", batch) for batch in (1, 4))
DECODE_STEPS = 64
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
    """One engine from its start to its end; the first, unrecorded round warms it up."""
    console.print(f"starting engine {variant.name}", highlight=False)
    start = time.monotonic()
    engine = EngineProcess(variant, prompts(), work / f"{variant.name}.log")
    ready_seconds = time.monotonic() - start
    rates: dict[str, list[float]] = {point.name: [] for point in POINTS}
    try:
        for number in range(rounds + 1):
            for point in POINTS:
                engine.begin(point, number)
                found = engine.slice(DECODE_STEPS)
                if number:
                    rates[point.name].append(found.tokens / found.seconds)
        state = engine.state()
    finally:
        engine.stop()
    return {
        "ready_seconds": round(ready_seconds, 2),
        "activation_seconds": round(sum(engine.ready["load_seconds"]), 3),
        "rss_bytes": state["rss_bytes"],
        "stats": state["stats"],
        "tokens_per_second": {name: [round(rate, 3) for rate in values] for name, values in rates.items()},
    }


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 500, (4, PROMPT_TOKENS), generator=generator).tolist()


def summarise(shape: str, num_tasks: int, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    median = {
        name: {point: statistics.median(rates) for point, rates in one["tokens_per_second"].items()}
        for name, one in found.items()
    }
    return {
        "shape": shape,
        "tasks": num_tasks,
        "ratios": {point: round(median["routed"][point] / rate, 3) for point, rate in median["plain"].items()},
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
    points = list(summary["ratios"])
    table = Table("", *points, title=f"{summary['shape']}, {summary['tasks']} tasks: tokens per second")
    for name, rates in summary["tokens_per_second"].items():
        table.add_row(name, *(f"{rates[point]:.2f}" for point in points))
    table.add_row("routed / plain", *(f"{summary['ratios'][point]:.3f}" for point in points))
    table.caption = (
        f"activation {1000 * summary['activation_seconds']:.0f} ms; "
        f"{summary['over_plain_bytes'] / 2**20:.0f} MiB over plain"
    )
    return table


if __name__ == "__main__":
    typer.run(main)
