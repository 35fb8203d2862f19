"""`seta keys`: making API keys."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .keys import KeysError, line_for, new_key

app = typer.Typer(no_args_is_help=True, help="Make API keys.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """So that `new` stays a command of its own while it is the only one."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; limits and the prefix cache go by this name.")],
    file: Annotated[Path | None, typer.Option(help="Append the line to this keys file instead of printing it.")] = None,
) -> None:
    """Make a key. It is shown once; the line that lets it in holds its SHA-256 only."""
    key = new_key()
    try:
        line = line_for(name, key)
        if file is not None:
            _append(file, line)
    except (KeysError, OSError) as error:
        print(f"seta: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"key, shown only now:   {key}")
    print(f"line in {file}:   {line}" if file else f"line for a keys file:  {line}")


def _append(file: Path, line: str) -> None:
    """One write, so a server that reads at the same time sees the line or does not. A new file is its owner's alone."""
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb+") as out:
        size = out.seek(0, os.SEEK_END)
        has_open_line = size > 0 and (out.seek(size - 1), out.read(1))[1] != b"\n"
        out.write((b"\n" if has_open_line else b"") + line.encode() + b"\n")
