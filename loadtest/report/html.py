"""A report as one HTML file that needs nothing else: no script, no request to any host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from .charts import charts
from .markdown import (
    DRIFT_HEAD,
    action_rows,
    drift_rows,
    error_rows,
    group_cells,
    head,
    limits,
    number,
    stage_head,
    stage_rows,
)
from .plots import draw
from .schema import Group, Report, StageReport

ONE_LOAD = ("steady", "soak", "hot-add")


def html(report: Report) -> str:
    """The page. Whatever came from a server or a workload is escaped by the template."""
    templates = Environment(loader=PackageLoader("loadtest.report", "."), autoescape=True, undefined=StrictUndefined)
    return templates.get_template("page.html").render(
        report=report,
        cards=_cards(report.stages[-1].total) if report.stages and report.scenario in ONE_LOAD else (),
        stage_head=stage_head(report),
        stage_rows=stage_rows(report),
        action_rows=action_rows(report),
        limits=limits(report),
        charts=[Markup(draw(chart)) for chart in charts(report)],  # built by an XML library, which escapes
        sections=[_section(report, stage) for stage in report.stages],
        settings=json.dumps(report.settings, indent=1),
        grid=_grid,
    )


def _cards(total: Group) -> list[tuple[str, str, str]]:
    """(label, value, unit) of what one looks for first."""
    good = [] if total.good is None else [("Goodput", number(total.good_per_second, 2), "requests/s")]
    failed = 100 * total.failed / total.sent if total.sent else None
    return [
        ("TTFT p50", number(total.ttft.p50_ms), "ms"),
        ("TTFT p99", number(total.ttft.p99_ms), "ms"),
        ("ITL p50", number(total.itl.p50_ms), "ms"),
        ("ITL p99", number(total.itl.p99_ms), "ms"),
        ("Output", number(total.tokens_per_second, 0), "tokens/s"),
        *good,
        ("Failed", number(failed, 2), "%"),
    ]


def _section(report: Report, stage: StageReport) -> dict[str, Any]:
    parts = []
    for title, groups in (("By task", stage.tasks), ("By generation", stage.generations)):
        if groups:
            rows = [[name, *group_cells(group, report.has_goodput)] for name, group in groups.items()]
            parts.append({"title": title, "head": head(title.split()[-1], report.has_goodput), "rows": rows})
    if stage.drift:
        parts.append({"title": "Drift from the first third to the last", "head": DRIFT_HEAD, "rows": drift_rows(stage)})
    if stage.errors:
        parts.append({"title": "Errors", "head": ("kind", "count", "for example"), "rows": error_rows(stage)})
    return {"title": f"{stage.stage.name}: {stage.stage.load}, {stage.seconds:.1f} s", "parts": parts}


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table; long texts may wrap."""
    lines = [Markup("<tr>") + _cells("th", heads) + Markup("</tr>")]
    lines += [Markup("<tr>") + _cells("td", row) + Markup("</tr>") for row in rows]
    return Markup("<table>") + Markup("\n").join(lines) + Markup("</table>")


def _cells(tag: str, values: Sequence[str]) -> Markup:
    return Markup("").join(
        Markup("<{tag}{style}>{value}</{tag}>").format(
            tag=tag, style=Markup(' class="text"') if len(value) > 50 else "", value=escape(value)
        )
        for value in values
    )
