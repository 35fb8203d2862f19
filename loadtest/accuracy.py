"""Ask a running server every held-out prompt and compare its answers: `python -m loadtest.accuracy --test FILE...`.

Speaks HTTP to any OpenAI-compatible server. A client names the model and nothing else: no task, no adapter.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

MAX_ANSWER_TOKENS = 32
TIMEOUT_SECONDS = 300.0


@dataclass
class Tally:
    """Per task: prompts asked, answered as expected, failed; and the generations that answered."""

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    generations: Counter[str] = field(default_factory=Counter)

    def accuracy(self, task: str) -> float:
        """Percent of the task's prompts answered exactly as expected."""
        return 100 * self.right[task] / self.asked[task]


async def measure(url: str, model: str, rows: list[dict[str, Any]], concurrency: int) -> Tally:
    """Greedy answers to all rows (`{"task", "prompt" | "messages", "answer"}`), `concurrency` at a time."""
    tally, places = Tally(), asyncio.Semaphore(concurrency)
    progress = Progress(console=Console(stderr=True), transient=True)
    bar = progress.add_task("asking", total=len(rows))
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:

        async def ask(row: dict[str, Any]) -> None:
            async with places:
                await _ask(client, model, row, tally)
                progress.advance(bar)

        with progress:
            await asyncio.gather(*(ask(row) for row in rows))
    return tally


async def _ask(client: httpx.AsyncClient, model: str, row: dict[str, Any], tally: Tally) -> None:
    messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_ANSWER_TOKENS}
    task = row["task"]
    tally.asked[task] += 1
    try:
        response = await client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        answer = response.json()["choices"][0]["message"]["content"]
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        tally.failed[task] += 1
        print(f"{task}: {type(error).__name__}: {error}", file=sys.stderr)
        return
    tally.generations[response.headers.get("x-seta-generation", "?")] += 1
    tally.right[task] += answer == row["answer"]


def read_rows(paths: list[Path], limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` lines of each file (None: all)."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()[:limit]]


def main(
    test: Annotated[list[Path], typer.Option(help="Task file with held-out examples; may be repeated.")],
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The model's name.")] = "seta-demo",
    concurrency: Annotated[int, typer.Option(min=1, max=1024)] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many prompts of each file.")] = None,
) -> None:
    """Exact-match accuracy of a running server on held-out prompts."""
    tally = asyncio.run(measure(url, model, read_rows(test, limit), concurrency))
    table = Table("task", "asked", "right", "accuracy %", "failed", title=f"{model} at {url}")
    for task, asked in tally.asked.items():
        cells = (str(asked), str(tally.right[task]), f"{tally.accuracy(task):.2f}", str(tally.failed[task]))
        table.add_row(task, *cells)
    Console().print(table)
    generations = ", ".join(f"{name} ({count})" for name, count in tally.generations.items())
    print(f"answered by generation: {generations or 'none'}")
    raise typer.Exit(1 if tally.failed else 0)


if __name__ == "__main__":
    typer.run(main)
