"""Ask a running server every held-out prompt and compare its answers: `python -m loadtest.accuracy --test FILE...`.

Speaks HTTP to any OpenAI-compatible server. A client names the model and nothing else: no task, no adapter.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .client import Client
from .driver import Driver
from .errors import LoadTestError
from .keys import CLIENT_VARIABLES, read_key
from .progress import Watch
from .recorder import Recorder
from .settings import Settings
from .stages import Stage
from .workload import Row, in_order, read_rows

MAX_ANSWER_TOKENS = 32
SECONDS = 86400.0


async def measure(url: str, model: str, rows: Sequence[Row], concurrency: int, api_key: str | None = None) -> Recorder:
    """Greedy answers to all rows, `concurrency` at a time; `.tasks` and `.generations` say what came of them."""
    settings = Settings(scenario="steady", url=url, model=model)
    stage = Stage(name="accuracy", arrivals="closed", concurrency=concurrency, seconds=SECONDS, requests=len(rows))
    recorder = Recorder(settings, time.perf_counter())
    async with Client(settings, model, api_key) as client:
        with Watch().stage(stage, recorder):
            driver = Driver(stage, client.ask, in_order(rows, MAX_ANSWER_TOKENS), recorder)
            await driver.run(None, concurrency, asyncio.Event())
    return recorder


def main(
    test: Annotated[list[Path], typer.Option(help="Task file with held-out examples; may be repeated.")],
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model's name.")] = "seta-demo",
    concurrency: Annotated[int, typer.Option(min=1, max=1024)] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many prompts of each file.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with the API key; else {' or '.join(CLIENT_VARIABLES)} is read.")
    ] = None,
) -> None:
    """Exact-match accuracy of a running server on held-out prompts."""
    try:
        rows, key = read_rows(test, limit), read_key(api_key_file, CLIENT_VARIABLES)
        recorder = asyncio.run(measure(url, model, rows, concurrency, key))
    except LoadTestError as error:
        print(f"seta: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    table = Table("task", "asked", "right", "accuracy %", "failed", title=f"{model} at {url}")
    for task, tally in recorder.tasks.items():
        table.add_row(task, str(tally.sent), str(tally.right), f"{tally.accuracy:.2f}", str(tally.failed))
    Console().print(table)
    generations = ", ".join(f"{name} ({tally.completed})" for name, tally in recorder.generations.items())
    print(f"answered by generation: {generations or 'unknown, the server does not say'}")
    for kind, count in recorder.errors.items():
        print(f"{kind}: {count}, for example: {recorder.examples[kind]}", file=sys.stderr)
    raise typer.Exit(1 if recorder.total.failed else 0)


if __name__ == "__main__":
    typer.run(main)
