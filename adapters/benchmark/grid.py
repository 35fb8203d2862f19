"""All cells of one comparison, one after another, then its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.base_model import fingerprint, resolve_model_dir
from adapters.benchmark.cells import Cell, CellStore
from adapters.benchmark.methods import Method
from adapters.benchmark.records import CellResult, describe
from adapters.benchmark.report import write_report
from adapters.benchmark.results import results_table, show, summarise, write_results
from adapters.benchmark.run import run_cell
from adapters.benchmark.tasks import read_sequence, sequence_tasks
from adapters.progress import console


def run_grid(
    data: Path,
    sequence: str,
    methods: Sequence[Method],
    model: str,
    examples: int,
    tests: int,
    steps: int,
    seed: int,
    out: Path,
) -> int:
    """Run what is not there yet, write the results. Returns how many cells another process was working on.

    Raises DataError, BankError, BaseModelError.
    """
    tasks = read_sequence(data, sequence_tasks(sequence), examples, tests, seed)
    model_dir = resolve_model_dir(model)
    run = describe(sequence, tasks, seed, steps, fingerprint(model_dir).weights_sha256)
    store = CellStore(out / "cells")
    cells = [Cell(method, run) for method in methods]
    for number, cell in enumerate(cells, 1):
        with store.claim(cell) as is_ours:
            if not is_ours:
                console.print(f"{cell.method.label}: another process is at it; skipped")
                continue
            if store.result(cell) is None:
                console.rule(f"cell {number} of {len(cells)}: {cell.method.label}, {sequence}, seed {seed}")
                run_cell(cell, tasks, model_dir, store)
    finished = gather(cells, store)
    if finished:
        summary = summarise(run, finished)
        write_results(out, summary)
        report = write_report(out)
        show(results_table(summary))
        console.print(f"report: {report}", highlight=False)
    return sum(store.result(cell) is None for cell in cells)


def gather(cells: Sequence[Cell], store: CellStore) -> list[CellResult]:
    """The finished cells, under the names by which they were asked for."""
    found = [(cell, store.result(cell)) for cell in cells]
    return [result.model_copy(update={"method": cell.method.label}) for cell, result in found if result is not None]
