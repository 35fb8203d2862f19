"""The benchmark's command line. Importing this module imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from adapters.benchmark.figures.cli import DEFAULT, DEFAULT_MODEL, add_figures

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def grid(
    data: Annotated[Path, typer.Option(help="Folder with <task>/train.jsonl and <task>/test.jsonl.")],
    sequence: Annotated[
        str, typer.Option(help="Task names with commas, or a built-in sequence: s4, s4-2, s4-3, d6, t6, y2, demo.")
    ],
    out: Annotated[Path, typer.Option(help="Results, table, report, and the cells: measured once, then kept.")],
    methods: Annotated[
        str, typer.Option(help="Names with commas; settings after colons: seta,seta:late_start=0,seq-lora.")
    ] = "seta,seq-lora,per-task",
    model: Annotated[str, typer.Option(help="The base model: a local directory or a hub id.")] = DEFAULT_MODEL,
    examples: Annotated[int, typer.Option(min=1, help="At most so many training examples a task.")] = 500,
    tests: Annotated[int, typer.Option(min=1, help="At most so many test examples a task.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a task.")] = DEFAULT.steps,
    seed: Annotated[int, typer.Option(help="Of the training examples chosen, their order, every start value.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="name=value for every method with that setting. Repeatable.")
    ] = None,
) -> None:
    """Train the methods on a sequence of tasks, evaluate after every task, and compare them.

    Every (method, sequence, seed) cell is kept in OUT/cells. A killed run goes on after its last whole task; several
    processes may work on one OUT at once, on different cells.
    """
    from adapters.cli import clear_errors

    with clear_errors(kept="every finished task"):
        from adapters.benchmark.grid import run_grid
        from adapters.benchmark.methods import parse_methods, parse_pairs

        specs = [name.strip() for name in methods.split(",") if name.strip()]
        chosen = parse_methods(specs, steps, seed, parse_pairs(set_ or []))
        num_elsewhere = run_grid(data, sequence, chosen, model, examples, tests, steps, seed, out)
        if num_elsewhere:
            print(f"{num_elsewhere} cell(s) are with another process; run this again to gather them", file=sys.stderr)


add_figures(app)


def main() -> None:
    """Without a command the options are those of `grid`."""
    arguments = sys.argv[1:]
    is_grid = bool(arguments) and arguments[0].startswith("--") and arguments[0] != "--help"
    app(["grid", *arguments] if is_grid else arguments, prog_name="python -m adapters.benchmark")


if __name__ == "__main__":
    main()
