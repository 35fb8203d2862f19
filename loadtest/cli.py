"""`seta loadtest`, also `python -m loadtest`: measure a running server over HTTP, compare two measurements."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from .errors import LoadTestError
from .keys import ADMIN_VARIABLES, CLIENT_VARIABLES, read_key
from .options import settings_from, with_options_of_settings
from .progress import Watch
from .report.compare import as_markdown, compare
from .report.files import write_reports
from .report.markdown import summary
from .report.schema import Report, read_report
from .run import LoadTest
from .settings import Settings

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure a running OpenAI-compatible server over HTTP; compare two measurements.",
)


def _load_test(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Directory for the reports; from the scenario and the time.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with the API key; else {' or '.join(CLIENT_VARIABLES)} is read.")
    ] = None,
    admin_key_file: Annotated[
        Path | None, typer.Option(help=f"Hot-add: file with the admin key; else {ADMIN_VARIABLES[0]} is read.")
    ] = None,
    **options: Any,
) -> None:
    """Run a scenario and write report.json, report.md and report.html."""
    if context.invoked_subcommand is not None:
        return
    if options["scenario"] is None:
        print(context.get_help())
        raise typer.Exit(2)
    with _one_sentence():
        settings = settings_from(options)
        directory = out or Path(f"loadtest-{settings.scenario}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        keys = read_key(api_key_file, CLIENT_VARIABLES), read_key(admin_key_file, ADMIN_VARIABLES)
        report = asyncio.run(_run(settings, *keys))
        files = write_reports(report, directory)
    _print(summary(report))
    print(f"reports: {', '.join(map(str, files))}")
    raise typer.Exit(INTERRUPTED if report.interrupted else 0)


async def _run(settings: Settings, api_key: str | None, admin_key: str | None) -> Report:
    return await LoadTest(settings, Watch(), api_key, admin_key).run()


app.callback(invoke_without_command=True)(with_options_of_settings(_load_test))


@app.command("compare")
def compare_reports(
    before: Annotated[Path, typer.Argument(help="report.json, or its directory.")],
    after: Annotated[Path, typer.Argument(help="The same, of the run to compare with it.")],
    tolerance: Annotated[
        float, typer.Option(min=0, max=100, help="Percent of difference that is never called one.")
    ] = 2.0,
    fail_if_worse: Annotated[bool, typer.Option(help="Exit with status 1 if anything is worse.")] = False,
) -> None:
    """Ratios of two runs, and which differences exceed the noise."""
    with _one_sentence():
        comparison = compare(read_report(before), read_report(after), tolerance / 100)
    _print(as_markdown(comparison))
    raise typer.Exit(1 if fail_if_worse and comparison.is_worse else 0)


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except LoadTestError as error:
        print(f"seta: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _print(markdown: str) -> None:
    """Rendered on a terminal, as it is in a file or a pipe."""
    console = Console()
    console.print(Markdown(markdown)) if console.is_terminal else print(markdown)
