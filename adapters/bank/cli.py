"""`python -m adapters.bank`: look at a bank, check it, move generations, choose the one that serves."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import BankError, BankNotFound, shorten
from .lora_cli import export_lora, import_lora
from .manifest import Manifest
from .store import Bank
from .upkeep import GRACE_SECONDS

app = typer.Typer(help="Inspect and maintain an expert bank.", no_args_is_help=True, add_completion=False)

app.command("import-lora")(import_lora)
app.command("export-lora")(export_lora)

BankPath = Annotated[Path, typer.Argument(help="the bank's directory", show_default=False)]
ArchivePath = Annotated[Path, typer.Argument(help="the archive, a .tar file", show_default=False)]
AnyGeneration = Annotated[int | None, typer.Option("--generation", "-g", help="its number [default: CURRENT]")]


@app.command()
def show(bank: BankPath, generation: AnyGeneration = None) -> None:
    """Tasks, experts, sizes and the accuracy matrix of one generation."""
    with _one_line_errors():
        opened = Bank.open(bank)
        manifest = opened.manifest(generation)
        current = opened.current() if opened.has_current() else None
        console = Console()
        typer.echo(_headline(manifest, opened.generations(), current))
        if manifest.tasks:
            for table in (_task_table(manifest), _expert_table(manifest)):
                console.print(table)
        if manifest.accuracy_matrix:
            console.print(_accuracy_table(manifest))


@app.command()
def verify(bank: BankPath) -> None:
    """Read everything in every generation; print what is wrong and exit 1, or say that nothing is."""
    with _one_line_errors():
        opened = Bank.open(bank)
        problems = opened.verify()
        for problem in problems:
            typer.echo(problem, err=True)
        if problems:
            raise typer.Exit(1)
        typer.echo(f"ok: {len(opened.generations())} generation(s)")


@app.command()
def gc(
    bank: BankPath,
    keep: Annotated[list[int] | None, typer.Option(help="keep only these generations (repeat); CURRENT stays")] = None,
    grace_seconds: Annotated[float, typer.Option(min=0, help="spare objects younger than this")] = GRACE_SECONDS,
) -> None:
    """Delete what no generation needs, and temporary files that a crash left."""
    with _one_line_errors():
        collected = Bank.open(bank).gc(keep or None, grace_seconds)
        dropped = f", generations {collected.generations} with them" if collected.generations else ""
        typer.echo(f"deleted {collected.num_files} file(s), {_size(collected.file_bytes)}{dropped}")


@app.command()
def export(bank: BankPath, archive: ArchivePath, generation: AnyGeneration = None) -> None:
    """Write one generation, verified, to a new archive."""
    with _one_line_errors():
        manifest = Bank.open(bank).export(generation, archive)
        typer.echo(f"exported generation {manifest.generation}, {_size(archive.stat().st_size)}")


@app.command("import")
def import_(bank: BankPath, archive: ArchivePath) -> None:
    """Bring an archive's generation into the bank (made if it does not exist) under its own number."""
    with _one_line_errors():
        try:
            opened = Bank.open(bank)
        except BankNotFound:
            opened = Bank.create(bank)
        manifest = opened.import_(archive)
        typer.echo(f"imported generation {manifest.generation}; CURRENT is {opened.current()}")


@app.command()
def use(bank: BankPath, generation: Annotated[int, typer.Argument(min=0, help="its number")]) -> None:
    """Make a generation CURRENT, once it is verified."""
    with _one_line_errors():
        Bank.open(bank).set_current(generation)
        typer.echo(f"CURRENT is {generation}")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except BankError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None


def _headline(manifest: Manifest, numbers: list[int], current: int | None) -> str:
    base, total = manifest.base, sum(ref.object_bytes for ref in manifest.refs)
    state = "CURRENT" if manifest.generation == current else f"CURRENT is {current}"
    layers = f"{manifest.trunk_layers} to {base.num_layers - 1}"
    return (
        f"generation {manifest.generation} ({state}; {len(numbers)} in the bank), parent {manifest.parent}, "
        f"created {manifest.created:%Y-%m-%d %H:%M:%S} UTC, {_size(total)}\n"
        f"base {base.architecture} {shorten(base.weights_sha256)}, {manifest.gate.kind} gate, "
        f"experts in layers {layers} on {', '.join(manifest.targets)}, block size {manifest.block_size}"
    )


def _task_table(manifest: Manifest) -> Table:
    table = _table("tasks", "task", "generation", "train", "test", "experts", "metrics")
    for task, columns in zip(manifest.tasks, manifest.experts_by_task, strict=True):
        experts = ", ".join(manifest.experts[column].id for column in columns)
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(task.metrics.items()))
        counts = (task.generation, task.num_train, task.num_test)
        table.add_row(task.name, *map(str, counts), experts, escape(metrics))
    return table


def _expert_table(manifest: Manifest) -> Table:
    table = _table("experts", "expert", "kind", "rank", "blocks", "size", "object")
    for expert in manifest.experts:
        cells = (expert.id, expert.kind, expert.rank, expert.num_blocks, _size(expert.object_bytes))
        table.add_row(*map(str, cells), shorten(expert.object))
    return table


def _accuracy_table(manifest: Manifest) -> Table:
    names = [task.name for task in manifest.tasks]
    table = _table("accuracy, %", "after", *names)
    for name, row in zip(names, manifest.accuracy_matrix, strict=True):
        table.add_row(name, *(f"{accuracy:.1f}" for accuracy in row))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"
