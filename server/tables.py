"""Tables for people and for pipes. On a terminal they fit its width: long cells go on in the next line, nothing is cut
off. Where the output is a pipe or a file, each row is one line, however long.
"""

import sys
from collections.abc import Sequence
from typing import Any


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], whole: Sequence[str] = ()) -> None:
    """Print `rows` under `columns`. The cells of the columns named in `whole` are never broken; the others are."""
    lines = [tuple(map(str, row)) for row in rows]
    if sys.stdout.isatty():
        _print_for_a_terminal(columns, lines, frozenset(whole))
    else:
        _print_for_a_pipe([tuple(columns), *lines])


def _print_for_a_terminal(columns: Sequence[str], lines: list[tuple[str, ...]], whole: frozenset[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        header = name.replace(" ", "\n") if name in whole else name
        table.add_column(Text(header), overflow="fold", no_wrap=name in whole, vertical="top")
    for line in lines:
        table.add_row(*map(Text, line))  # a name may hold what rich would take for markup
    Console().print(table)


def _print_for_a_pipe(lines: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
