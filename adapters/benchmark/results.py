"""From cells to what people read: one JSON object a comparison, and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters.benchmark.cells import write_atomically
from adapters.benchmark.records import CellResult, Run
from adapters.evaluate import backward_transfer, forgetting, overall_performance
from adapters.progress import stdout

RESULTS_FORMAT = 1
TEXT_WIDTH = 200


def summarise(run: Run, results: Sequence[CellResult]) -> dict[str, Any]:
    """What `results.json` holds. OP, BWT and FT are equations 15 to 17; `joint` has no order, so it has OP alone."""
    return {
        "format": RESULTS_FORMAT,
        "sequence": run.sequence,
        "tasks": list(run.tasks),
        "num_train": list(run.num_train),
        "num_test": list(run.num_test),
        "seed": run.seed,
        "steps": run.steps,
        "base_sha256": run.base_sha256,
        "data_sha256": run.data_sha256,
        "versions": results[-1].versions if results else {},
        "methods": [summarise_method(result) for result in results],
    }


def summarise_method(result: CellResult) -> dict[str, Any]:
    matrix = [list(stage.accuracy) for stage in result.stages]
    is_ordered = all(len(row) == index + 1 for index, row in enumerate(matrix))
    last, stages = result.stages[-1], result.stages
    timed = [stage for stage in stages if stage.seconds is not None]
    seconds = sum(stage.seconds or 0.0 for stage in timed)
    tokens = sum(stage.tokens for stage in timed)
    return {
        "method": result.method,
        "kind": result.kind,
        "op": round(overall_performance(matrix), 2),
        "bwt": round(backward_transfer(matrix), 2) if is_ordered else None,
        "ft": round(forgetting(matrix), 2) if is_ordered else None,
        "right_after_learning": round(sum(row[-1] for row in matrix) / len(matrix), 2) if is_ordered else None,
        "matrix": matrix,
        "trained_parameters": max(stage.trained_parameters for stage in stages),
        "held_parameters": last.held_parameters,
        "seconds": round(seconds, 1),
        "is_fully_timed": len(timed) == len(stages),
        "evaluation_seconds": round(sum(stage.evaluation_seconds for stage in stages), 1),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_bytes": max(stage.peak_bytes for stage in stages),
        "blocks": [stage.blocks for stage in stages] if last.blocks else None,
        "routing": last.routing.model_dump(mode="json") if last.routing else None,
        "routing_stripped": last.routing_stripped.model_dump(mode="json") if last.routing_stripped else None,
        "settings": result.settings,
        "key": result.key,
        "finished": result.finished,
    }


def results_table(summary: dict[str, Any]) -> Table:
    """One row a method; every task's accuracy is the one after the whole sequence."""
    seed, steps = summary["seed"], summary["steps"]
    title = f"{summary['sequence']}, seed {seed}, {steps} steps a task, % exact match after the last task"
    table = Table("method", *summary["tasks"], "OP", "BWT", "FT", "M values", "min", "tokens/s", "GiB", title=title)
    for method in summary["methods"]:
        table.add_row(
            method["method"],
            *(f"{value:.1f}" for value in method["matrix"][-1]),
            f"{method['op']:.2f}",
            *("" if method[name] is None else f"{method[name]:+.2f}" for name in ("bwt", "ft")),
            f"{method['held_parameters'] / 1e6:.2f}",
            f"{method['seconds'] / 60:.1f}" + ("" if method["is_fully_timed"] else "+"),
            "" if method["tokens_per_second"] is None else f"{method['tokens_per_second']:.0f}",
            f"{method['peak_bytes'] / 2**30:.2f}",
        )
    return table


def show(table: Table) -> None:
    """On standard output; a pipe or a file gets it as wide as it is."""
    Console(width=None if stdout.is_terminal else TEXT_WIDTH).print(table)


def write_results(out: Path, summary: dict[str, Any]) -> None:
    """`results.json` and `table.txt` of this comparison, and a copy of the JSON under the comparison's own name."""
    data = (json.dumps(summary, indent=1) + "\n").encode()
    write_atomically(out / "results.json", data)
    write_atomically(out / "comparisons" / f"{comparison_name(summary)}.json", data)
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=TEXT_WIDTH).print(results_table(summary))


def comparison_name(summary: dict[str, Any]) -> str:
    """The same for the same sequence, data, steps and seed."""
    sequence = summary["sequence"].replace(",", "-")[:60]
    return f"{sequence}-seed{summary['seed']}-steps{summary['steps']}-{summary['data_sha256'][:8]}"
