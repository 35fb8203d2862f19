"""The HTML report: every comparison that a folder holds, one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from adapters.benchmark.cells import write_atomically
from adapters.benchmark.figures.store import Figure, load_figures
from adapters.benchmark.style import STYLE
from adapters.benchmark.svg import Bar, Line, bars, heat_map, lines

CEILINGS = ("per-task", "joint")
Json = dict[str, Any]


def write_report(out: Path) -> Path:
    """`OUT/report.html` from `OUT/comparisons/*.json` and `OUT/figures/*.json`."""
    comparisons = [json.loads(path.read_bytes()) for path in sorted((out / "comparisons").glob("*.json"))]
    path = out / "report.html"
    write_atomically(path, page(comparisons, load_figures(out)).encode())
    return path


def page(comparisons: Sequence[Json], figures: Sequence[Figure] = ()) -> str:
    body = [overview(comparisons)] if len(comparisons) > 1 else []
    body += [section(number, comparison) for number, comparison in enumerate(comparisons)]
    body += [figure_part(figure) for figure in figures]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Continual-learning benchmark</title><style>{STYLE}</style></head><body><main>"
        "<h1>Continual-learning benchmark</h1>"
        '<p class="quiet">Exact match on held-out examples in percent points; one base model, the same data, steps, '
        "prompts and decoding for every method. <code>docs/benchmark.md</code> defines every number.</p>"
        f"{''.join(body)}</main></body></html>\n"
    )


def role(method: Json) -> str:
    if method["method"] == "seta":
        return "own"
    if method["kind"] in CEILINGS:
        return "ceiling"
    return "variant" if method["kind"].startswith("seta") else "other"


def overview(comparisons: Sequence[Json]) -> str:
    """OP of every method in every comparison, and their mean where a method is in all of them."""
    names = [f"{c['sequence']}, seed {c['seed']}" for c in comparisons]
    found: dict[str, dict[int, Json]] = {}
    for number, comparison in enumerate(comparisons):
        for method in comparison["methods"]:
            found.setdefault(method["method"], {})[number] = method
    rows = []
    for label, by_number in found.items():
        cells = [f"{by_number[n]['op']:.2f}" if n in by_number else "" for n in range(len(comparisons))]
        mean = f"{fmean(m['op'] for m in by_number.values()):.2f}" if len(by_number) == len(comparisons) else ""
        rows.append((role(next(iter(by_number.values()))), [label, *cells, mean]))
    links = "".join(f'<a href="#c{number}">{escape(name)}</a>' for number, name in enumerate(names))
    return f"<nav>{links}</nav><h2>Overall performance</h2>{table(['OP', *names, 'mean'], rows, [])}"


def section(number: int, comparison: Json) -> str:
    methods = comparison["methods"]
    parts = [
        f'<h2 id="c{number}">{escape(comparison["sequence"])}, seed {comparison["seed"]}</h2>',
        f'<p class="quiet">{escape(" → ".join(comparison["tasks"]))} · {_counts(comparison["num_train"])} training and '
        f"{_counts(comparison['num_test'])} test examples a task · {comparison['steps']} steps a task</p>",
        methods_table(comparison),
        "<h3>Overall performance, backward transfer, forgetting</h3>",
        plots(metric_bars(title, name, methods) for title, name in METRICS),
        "<h3>Accuracy: after learning the row's task, on the column's</h3>",
        plots(accuracy_map(comparison["tasks"], method) for method in methods),
        *(routing_part(comparison["tasks"], method) for method in methods if method["routing"]),
        "<h3>Time and memory</h3>",
        plots(resource_bars(methods)),
        f'<p class="quiet">{escape(", ".join(f"{n} {v}" for n, v in comparison["versions"].items()))} · '
        f"base {comparison['base_sha256'][:12]} · data {comparison['data_sha256'][:12]}</p>",
    ]
    return "".join(parts)


METRICS = (("OP, after the last task", "op"), ("BWT, 0: nothing lost", "bwt"), ("FT, 0: nothing forgotten", "ft"))


def methods_table(comparison: Json) -> str:
    heads = ["method", "OP", "BWT", "FT", "right after learning", "values held", "minutes", "tokens/s", "peak GiB"]
    rows = []
    for m in comparison["methods"]:
        cells = [
            m["method"],
            *(_number(m[name]) for name in ("op", "bwt", "ft", "right_after_learning")),
            f"{m['held_parameters'] / 1e6:.2f} M",
            f"{m['seconds'] / 60:.1f}" + ("" if m["is_fully_timed"] else " +"),
            _number(m["tokens_per_second"], 0),
            f"{m['peak_bytes'] / 2**30:.2f}",
        ]
        rows.append((role(m), cells))
    return table(heads, rows, best=[1])


def table(heads: Sequence[str], rows: Sequence[tuple[str, list[str]]], best: Sequence[int]) -> str:
    """`best`: columns whose largest value, ceilings aside, is set in bold."""
    marked = set()
    for column in best:
        values = {i: float(cells[column]) for i, (kind, cells) in enumerate(rows) if kind != "ceiling"}
        marked |= {(i, column) for i, value in values.items() if value == max(values.values())}
    lines_ = []
    for i, (kind, cells) in enumerate(rows):
        tds = (f"<td{_best((i, j) in marked)}>{escape(cell)}</td>" for j, cell in enumerate(cells))
        lines_.append(f'<tr class="{kind}">{"".join(tds)}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines_)}</table></div>'


def plots(figures: Any) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def metric_bars(title: str, name: str, methods: Sequence[Json]) -> str:
    return bars(title, [Bar(m["method"], m[name], _number(m[name]), role(m)) for m in methods], width=320)


def accuracy_map(tasks: Sequence[str], method: Json) -> str:
    matrix = method["matrix"]
    rows = tasks if len(matrix) == len(tasks) else ["all"]
    return heat_map(method["method"], rows, tasks, matrix)


def routing_part(tasks: Sequence[str], method: Json) -> str:
    """Where the gate sends prompts, and how many sub-blocks that takes."""
    columns = [*tasks, "base"]
    figures = [heat_map("routed to, at the prompt's end", tasks, columns, method["routing"]["confusion"])]
    series = [Line("as in the data", list(method["routing"]["by_position"].values()), "own")]
    stripped = method["routing_stripped"]
    if stripped:
        figures.append(heat_map("the same, instructions stripped", tasks, columns, stripped["confusion"]))
        series.append(Line("stripped", list(stripped["by_position"].values()), "second"))
    positions = max((s["by_position"] for s in (method["routing"], stripped) if s), key=len)
    padded = [Line(s.label, [*s.values, *[None] * (len(positions) - len(s.values))], s.role) for s in series]
    title, axis = "right task, by position", "content tokens read"
    figures.append(lines(title, list(positions), padded, low=0, high=100, unit=" %", axis=axis))
    if method["blocks"]:
        held, linear = ([float(pair[i]) for pair in method["blocks"]] for i in (0, 1))
        series = [Line("held", held, "own"), Line("one set a task", linear, "other")]
        counts = [str(n + 1) for n in range(len(held))]
        figures.append(lines("sub-blocks", counts, series, low=0, high=max(linear), unit="", axis="tasks learned"))
    return f"<h3>Routing and blocks: {escape(method['method'])}</h3>{plots(figures)}"


def figure_part(figure: Figure) -> str:
    parts = [f'<h2>{escape(figure.title)}</h2><p class="quiet">{escape(figure.note)}</p>']
    parts.append(table(figure.head, [("", list(row)) for row in figure.rows], []))
    if figure.chart:
        chart = figure.chart
        roles = ("own", "second", "other", "variant")
        series = [
            Line(name, values, roles[number % len(roles)]) for number, (name, values) in enumerate(chart.series.items())
        ]
        drawn = lines("", chart.positions, series, low=chart.low, high=chart.high, unit=chart.unit, axis=chart.axis)
        parts.append(plots([drawn]))
    return "".join(parts)


def resource_bars(methods: Sequence[Json]) -> list[str]:
    minutes = [Bar(m["method"], m["seconds"] / 60, f"{m['seconds'] / 60:.1f}", role(m)) for m in methods]
    memory = [Bar(m["method"], m["peak_bytes"] / 2**30, f"{m['peak_bytes'] / 2**30:.2f}", role(m)) for m in methods]
    values = [
        Bar(m["method"], m["held_parameters"] / 1e6, f"{m['held_parameters'] / 1e6:.2f}", role(m)) for m in methods
    ]
    titles = ("minutes of learning, all tasks", "peak memory while learning, GiB", "values held, millions")
    return [bars(title, rows, width=320) for title, rows in zip(titles, (minutes, memory, values), strict=True)]


def _best(is_best: bool) -> str:
    return ' class="best"' if is_best else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _counts(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"
