"""A figure on disk: a table and, if it has them, lines; the report shows every figure of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from adapters.benchmark.cells import write_atomically
from adapters.benchmark.records import Record


class Chart(Record):
    """Lines over named positions; `series` by name, None where nothing was measured."""

    positions: tuple[str, ...]
    axis: str
    unit: str
    low: float
    high: float
    series: Mapping[str, tuple[float | None, ...]]


class Figure(Record):
    """`name`: its file's; `values`: the numbers behind the table, for programs."""

    name: str
    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chart: Chart | None = None
    values: Mapping[str, object] = {}


def figure_table(figure: Figure) -> Table:
    table = Table(*figure.head, title=figure.title, caption=figure.note)
    for row in figure.rows:
        table.add_row(*row)
    return table


def save_figure(out: Path, figure: Figure) -> None:
    write_atomically(out / "figures" / f"{figure.name}.json", figure.model_dump_json(indent=1).encode() + b"\n")


def load_figures(out: Path) -> list[Figure]:
    """Raises pydantic's ValidationError for a file of another version."""
    return [Figure.model_validate_json(path.read_bytes()) for path in sorted((out / "figures").glob("*.json"))]
