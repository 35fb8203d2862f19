"""`seta learn` and `seta evaluate`: the training side on the command line. Importing this module imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapters.admin_client import KEY_VARIABLE, AdminClient, AdminError, read_key
from adapters.settings import DEFAULT_RUN, GateKind, LearnSettings, Preset, RunSettings, Sharing

if TYPE_CHECKING:
    from adapters.bank import Manifest

DEFAULT = LearnSettings()
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

BankDir = Annotated[Path, typer.Option("--bank", help="The expert bank; made if it does not exist.")]
Dtype = Annotated[Literal["bfloat16", "float32"], typer.Option(help="What the base model computes in.")]
ModelRef = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The base model: a local directory or a hub id. Default: the one the bank was last learned with.",
    ),
]
TestFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--test",
        help="Held-out examples, of the new and the earlier tasks; may be repeated. "
        "Without it a tenth of each new task is kept back.",
    ),
]


@app.command()
def learn(
    bank: BankDir,
    task: Annotated[
        list[Path],
        typer.Option(
            help='JSON lines: {"task", "prompt" | "messages", "answer"}; its tasks are learned in order. Repeatable.'
        ),
    ],
    model: ModelRef = None,
    test: TestFiles = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a task.")] = DEFAULT.steps,
    batch_size: Annotated[int, typer.Option(min=1)] = DEFAULT.batch_size,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = DEFAULT.learning_rate,
    preset: Annotated[Preset, typer.Option(help="Where settings come from that are not given.")] = DEFAULT.preset,
    sharing: Annotated[
        Sharing | None,
        typer.Option(help=f"What happens to sub-blocks that earlier tasks hold; default {DEFAULT.sharing}."),
    ] = None,
    gate: Annotated[
        GateKind | None,
        typer.Option(help=f"New bank only: how tokens are routed; default {DEFAULT.gate}."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help=f"Share of the sub-blocks above the trunk that a task may take; default {DEFAULT.density}."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help=f"Rank of a sub-block's delta; default {DEFAULT.rank}.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of docs/method.md. Repeatable."),
    ] = None,
    trunk_layers: Annotated[
        int | None, typer.Option(help="New bank only: layers without experts; default a fifth of the model's.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help=f"New bank only: edge of a sub-block; default {DEFAULT.block_size}.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help=f"New bank only: projections that carry experts; default {', '.join(DEFAULT.targets)}."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=16, help="Longer examples are left out, and counted.")
    ] = DEFAULT.max_tokens,
    seed: int = DEFAULT.seed,
    dtype: Dtype = DEFAULT.dtype,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Run a step's batch in so many parts, to need less memory.")
    ] = DEFAULT_RUN.accumulate,
    cache_mib: Annotated[
        int, typer.Option(min=0, help="Trunk outputs kept in memory; the rest is in a temporary file (TMPDIR).")
    ] = DEFAULT_RUN.cache_mib,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.0, help="How often it is written where the training is.")
    ] = DEFAULT_RUN.checkpoint_seconds,
    compile_layers: Annotated[
        bool,
        typer.Option("--compile", help="Train with decoder layers that torch compiles first: needs a C++ compiler."),
    ] = DEFAULT_RUN.compile,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop what an interrupted call left.")] = False,
    activate: Annotated[
        str | None, typer.Option(metavar="URL", help="Admin API of a server on which the last one goes live.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help=f"With --activate: file with the admin key; else the variable {KEY_VARIABLE}.")
    ] = None,
) -> None:
    """Learn the tasks of a file, one after another; each becomes a generation of the bank."""
    with clear_errors(kept="what was learned so far (the same command goes on with it)"):
        from adapters.activate import check_server, go_live
        from adapters.data import read_tasks
        from adapters.learn import learn_tasks
        from adapters.parallel import joined

        given = {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_tokens": max_tokens,
            "seed": seed,
            "dtype": dtype,
            "preset": preset,
            "sharing": sharing,
            "gate": gate,
            "density": density,
            "rank": rank,
            "trunk_layers": trunk_layers,
            "block_size": block_size,
            "targets": target,
            **pairs(setting or []),
        }
        settings = LearnSettings.model_validate({name: value for name, value in given.items() if value is not None})
        run = RunSettings(
            accumulate=accumulate,
            cache_mib=cache_mib,
            checkpoint_seconds=checkpoint_seconds,
            compile=compile_layers,
            fresh=fresh,
            make_current=activate is None,
        )
        client = None if activate is None else AdminClient(activate, read_key(key_file))
        before = None if client is None else check_server(client, bank)
        with joined() as processes:
            tasks, tests = read_tasks(*task), read_tasks(*test or ())
            manifest = learn_tasks(bank, model_of(bank, model), tasks, tests, settings, run, processes)
            if processes.is_main:
                show_matrix([t.name for t in manifest.tasks], manifest.accuracy_matrix)
            if processes.is_main and client is not None and before is not None:
                show_live(before, manifest, go_live(client, bank, manifest, before))


@app.command()
def evaluate(
    bank: BankDir,
    test: Annotated[list[Path], typer.Option(help="Held-out examples of the bank's tasks; may be repeated.")],
    model: ModelRef = None,
    generation: Annotated[int | None, typer.Option(help="Default: the current one.")] = None,
    dtype: Dtype = DEFAULT.dtype,
) -> None:
    """Measure a generation on held-out examples: accuracy and routing of every task, and the stored accuracy matrix."""
    with clear_errors():
        from adapters.data import read_tasks
        from adapters.evaluate_bank import evaluate_bank

        manifest, scores = evaluate_bank(bank, model_of(bank, model), read_tasks(*test), generation, dtype)
        from rich.table import Table

        from adapters.progress import stdout

        table = Table("task", "held out", "accuracy %", "routed to it %", title=f"generation {manifest.generation}")
        for name, score in scores.items():
            table.add_row(name, str(score.num_test), f"{score.accuracy:.2f}", f"{score.routing:.2f}")
        stdout.print(table)
        show_matrix([t.name for t in manifest.tasks], manifest.accuracy_matrix)


def pairs(settings: list[str]) -> dict[str, str]:
    """`NAME=VALUE` strings by name. Raises DataError."""
    from adapters.data import DataError

    for found in settings:
        if "=" not in found.strip("="):
            raise DataError(f"--set {found} found; expected NAME=VALUE")
    return {name: value for name, _, value in (found.partition("=") for found in settings)}


def model_of(bank: Path, given: str | None) -> str:
    """The base model to load: as given, else as the bank's current generation says. Raises DataError, BankError."""
    from adapters.bank import Bank
    from adapters.data import DataError

    known = given
    if known is None and bank.is_dir():
        known = Bank.open(bank).manifest().settings.get("model")  # type: ignore[assignment]
    if not isinstance(known, str):
        raise DataError(f"--model is missing, and the bank {bank.name!r} does not say which base model it was made for")
    return known


def show_matrix(names: list[str], matrix: tuple[tuple[float, ...], ...]) -> None:
    """The accuracy matrix: row i after learning task i, and what follows from it."""
    if not matrix:
        print("no accuracy matrix: held-out examples of earlier tasks were not given (--test)", file=sys.stderr)
        return
    from rich.table import Table

    from adapters.evaluate import backward_transfer, forgetting, overall_performance
    from adapters.progress import stdout

    table = Table("after learning", *names, title="accuracy matrix, % exact match on held-out examples")
    for name, row in zip(names, matrix, strict=True):
        table.add_row(name, *(f"{value:.2f}" for value in row), *[""] * (len(names) - len(row)))
    stdout.print(table)
    op, bwt, ft = overall_performance(matrix), backward_transfer(matrix), forgetting(matrix)
    stdout.print(f"OP {op:.2f}  BWT {bwt:+.2f}  FT {ft:.2f}", highlight=False)


def show_live(before: Manifest, after: Manifest, seconds: float) -> None:
    """Every task's accuracy in the generation that served and in the one that serves now."""
    from rich.table import Table

    from adapters.activate import before_and_after
    from adapters.progress import stdout

    columns = (f"before, generation {before.generation}", f"after, generation {after.generation}")
    table = Table("task", *columns, title="accuracy, %")
    for name, *accuracies in before_and_after(before, after):
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in accuracies))
    stdout.print(table)
    stdout.print(f"generation {after.generation} is live, activated in {seconds:.2f} s", highlight=False)


@contextmanager
def clear_errors(kept: str = "every generation published so far") -> Iterator[None]:
    """One line for what the user can mend; a traceback only for our own mistakes. `kept`: what Ctrl-C leaves."""
    from pydantic import ValidationError

    from adapters.backbone import UnsupportedModel
    from adapters.bank import BankError
    from adapters.base_model import BaseModelError
    from adapters.checkpoint import CheckpointError
    from adapters.data import DataError
    from adapters.lora.config import LoraError
    from adapters.parallel import ParallelError
    from adapters.trunk_cache import TrunkCacheError

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        print(f"seta: {where}{first['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (
        AdminError,
        BankError,
        BaseModelError,
        CheckpointError,
        DataError,
        LoraError,
        ParallelError,
        TrunkCacheError,
        UnsupportedModel,
    ) as error:
        print(f"seta: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"seta: interrupted; {kept} is kept", file=sys.stderr)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
