"""The commands of the figures. Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.settings import LearnSettings

if TYPE_CHECKING:
    from adapters.benchmark.figures.store import Figure
    from adapters.benchmark.settings import SetaSettings

DEFAULT = LearnSettings()
DEFAULT_MODEL = "build/models/SmolLM2-135M-Instruct"

DataDir = Annotated[Path, typer.Option("--data", help="Folder with <task>/train.jsonl and <task>/test.jsonl.")]
OutDir = Annotated[Path, typer.Option("--out", help="The figure goes to OUT/figures, and into OUT/report.html.")]
ModelRef = Annotated[str, typer.Option("--model", help="The base model: a local directory or a hub id.")]
BankDir = Annotated[Path, typer.Option("--bank", help="A bank; a finished cell of seta keeps its own.")]
SequenceRef = Annotated[str, typer.Option("--sequence", help="Task names with commas, or a built-in sequence.")]
Examples = Annotated[int, typer.Option(min=1, help="At most so many training examples a task.")]
Tests = Annotated[int, typer.Option(min=1, help="At most so many test examples a task.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="A setting of seta, name=value. Repeatable.")]


def add_figures(app: typer.Typer) -> None:
    for command in (speed, unknown, general, starts, curve):
        app.command()(command)


def speed(
    data: DataDir,
    task: Annotated[str, typer.Option(help="Whose batches are measured.")],
    out: OutDir,
    model: ModelRef = DEFAULT_MODEL,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = DEFAULT.batch_size,
    seed: int = 0,
    compile_layers: Annotated[bool, typer.Option("--compile", help="Also seta and LoRA with compiled layers.")] = False,
) -> None:
    """Time and memory of a training step: seta against LoRA, in turns, each in a process of its own."""
    from adapters.cli import clear_errors

    with clear_errors(kept="nothing"):
        from adapters.benchmark.figures.speed import COMPILED, VARIANTS, measure_speed

        variants = (*VARIANTS, *COMPILED) if compile_layers else VARIANTS
        _finish(out, measure_speed(data, task, model, rounds, batch_size, seed, variants))


def unknown(
    data: DataDir,
    sequence: SequenceRef,
    out: OutDir,
    model: ModelRef = DEFAULT_MODEL,
    examples: Examples = 500,
    tests: Tests = 200,
    seed: int = 0,
    set_: Overrides = None,
) -> None:
    """How well a task that was left out is told from the others (AUROC, share caught at 5 % false alarms)."""
    from adapters.cli import clear_errors

    with clear_errors(kept="nothing"):
        from adapters.benchmark.figures.unknown import measure_unknown
        from adapters.benchmark.tasks import read_sequence, sequence_tasks

        tasks = read_sequence(data, sequence_tasks(sequence), examples, tests, seed)
        _finish(out, measure_unknown(tasks, sequence, model, _settings(DEFAULT.steps, seed, set_)))


def general(
    bank: BankDir,
    out: OutDir,
    model: ModelRef = DEFAULT_MODEL,
    prompts: Annotated[Path | None, typer.Option(help='JSON lines {"prompt"}; default: 200 of our own.')] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    count: Annotated[int, typer.Option(min=1, help="At most so many prompts.")] = 200,
    name: Annotated[str, typer.Option(help="Of the figure's file.")] = "bank",
) -> None:
    """Whether general prompts are answered with the bank as they are by the base model."""
    from adapters.cli import clear_errors

    with clear_errors(kept="nothing"):
        from adapters.benchmark.figures.general import held_out_prompts, measure_general
        from adapters.benchmark.figures.opened import OpenedBank
        from adapters.data import read_prompts

        chosen = (read_prompts(prompts) if prompts else held_out_prompts())[:count]
        _finish(out, measure_general(OpenedBank.of(bank, model), chosen, max_tokens, name))


def starts(
    bank: BankDir,
    data: DataDir,
    out: OutDir,
    model: ModelRef = DEFAULT_MODEL,
    tests: Tests = 200,
    name: Annotated[str, typer.Option(help="Of the figure's file.")] = "bank",
) -> None:
    """Accuracy of every task of a bank by the position at which its experts are switched on."""
    from adapters.cli import clear_errors

    with clear_errors(kept="nothing"):
        from adapters.benchmark.figures.opened import OpenedBank
        from adapters.benchmark.figures.starts import measure_starts
        from adapters.benchmark.tasks import read_sequence

        opened = OpenedBank.of(bank, model)
        names = tuple(task.name for task in opened.manifest.tasks)
        tasks = read_sequence(data, names, 1, tests, 0)
        _finish(out, measure_starts(opened, {task.name: task.test for task in tasks}, name))


def curve(
    data: DataDir,
    first: Annotated[str, typer.Option(help="The task learned before.")],
    second: Annotated[str, typer.Option(help="The task whose curve it is.")],
    out: OutDir,
    model: ModelRef = DEFAULT_MODEL,
    points: Annotated[str, typer.Option(help="Steps, with commas.")] = "20,40,80,160",
    examples: Examples = 500,
    tests: Tests = 200,
    steps: Annotated[int, typer.Option(min=1, help="Of the first task.")] = DEFAULT.steps,
    seed: int = 0,
    set_: Overrides = None,
) -> None:
    """Accuracy by steps of a task learned after another one, and from scratch."""
    from adapters.cli import clear_errors

    with clear_errors(kept="every finished point"):
        from adapters.benchmark.figures.curve import measure_curve
        from adapters.benchmark.tasks import read_sequence

        one, other = read_sequence(data, (first, second), examples, tests, seed)
        counts = _counts(points)
        _finish(out, measure_curve(one, other, model, counts, _settings(steps, seed, set_), out))


def _settings(steps: int, seed: int, overrides: list[str] | None) -> SetaSettings:
    from adapters.benchmark.methods import parse_methods, parse_pairs
    from adapters.benchmark.settings import SetaSettings

    (method,) = parse_methods(["seta"], steps, seed, parse_pairs(overrides or []))
    assert isinstance(method.settings, SetaSettings)
    return method.settings


def _counts(points: str) -> list[int]:
    from adapters.data import DataError

    parts = [part.strip() for part in points.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise DataError(f"--points {points!r} found; expected numbers of steps with commas, like 20,40,80")
    return sorted({int(part) for part in parts})


def _finish(out: Path, figure: Figure) -> None:
    from adapters.benchmark.figures.store import figure_table, save_figure
    from adapters.benchmark.report import write_report
    from adapters.benchmark.results import show

    save_figure(out, figure)
    write_report(out)
    show(figure_table(figure))
