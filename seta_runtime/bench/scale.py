"""`python -m seta_runtime.bench.scale`: what a bank of very many tasks costs by itself, without a model or an engine.

Each step must take time in proportion to the number of experts; the last column would grow if one did not.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from adapters.bank import Bank
from adapters.progress import console, stdout
from seta_runtime.bench.many_tasks import BASE, TRUNK, bank_of
from seta_runtime.bench.rss import rss_bytes
from seta_runtime.kept import KeptExperts
from seta_runtime.resident import Layout, ResidentGeneration


def measure(bank: Bank, repetitions: int) -> dict[str, float]:
    """Seconds of each step on the newest generation, bytes of its manifest, of its objects and in memory.

    list: every manifest in the bank; open: the newest one; verify: all objects of all generations; choose: make another
    generation CURRENT, which verifies it; activate: read, verify and pack what a server serves; add: the same beside
    the generation before, of which all experts but one are in memory.
    """
    newest = bank.generations()[-1]
    manifest = bank.manifest(newest)
    before = rss_bytes()
    steps: dict[str, Callable[[], object]] = {
        "list": lambda: [bank.manifest(number).digest for number in bank.generations()],
        "open": lambda: Bank.open(bank.root).manifest(newest),
        "verify": bank.verify,
        "choose": lambda: bank.set_current(newest),
        "activate": lambda: load(bank, newest),
        "add": lambda: load(bank, newest, known),
    }
    loaded = load(bank, newest)
    held = rss_bytes() - before
    known = KeptExperts()
    older = load(bank, newest - 1, known)
    assert older.kept or not loaded.kept
    seconds = {f"{name}_seconds": _seconds(step, repetitions) for name, step in steps.items()}
    return seconds | {
        "manifest_bytes": float(len(manifest.to_bytes())),
        "object_bytes": float(sum(ref.object_bytes for ref in manifest.refs)),
        "resident_bytes": float(loaded.nbytes),
        "rss_added_bytes": float(held),
    }


def load(bank: Bank, generation: int, known: KeptExperts | None = None) -> ResidentGeneration:
    layout, cpu = Layout(TRUNK, ("v_proj",)), torch.device("cpu")
    return ResidentGeneration.load(1, bank.root, generation, None, BASE, layout, torch.bfloat16, cpu, known=known)


def main(
    tasks: Annotated[list[int] | None, typer.Option(min=2, help="Bank sizes; default 100, 300, 1000.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each step; the fastest counts.")] = 5,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("build/bench"),
) -> None:
    """Time and memory of a bank's own steps as the number of tasks grows."""
    found: dict[int, dict[str, float]] = {}
    for count in sorted(tasks or [100, 300, 1000]):
        console.print(f"making a bank of {count} tasks", highlight=False)
        with tempfile.TemporaryDirectory(prefix="seta-scale-") as folder:
            found[count] = measure(bank_of(Path(folder) / "bank", count), repetitions)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    stdout.print(_table(found))


def _table(found: dict[int, dict[str, float]]) -> Table:
    smallest, largest = min(found), max(found)
    table = Table("", *(f"{count} tasks" for count in found), f"per task, {largest} to {smallest}")
    for name in next(iter(found.values())):
        values = [row[name] for row in found.values()]
        growth = (values[-1] / largest) / max(values[0] / smallest, 1e-12)
        table.add_row(_label(name), *(_shown(name, value) for value in values), f"{growth:.2f}")
    return table


def _label(name: str) -> str:
    return name.removesuffix("_seconds").replace("_", " ")


def _shown(name: str, value: float) -> str:
    return f"{1000 * value:.0f} ms" if name.endswith("_seconds") else f"{value / 2**20:.2f} MiB"


def _seconds(step: Callable[[], Any], repetitions: int) -> float:
    """The fastest: a machine that others use only ever adds time."""
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    typer.run(main)
