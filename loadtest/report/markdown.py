"""A report as Markdown: what is printed, and `report.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .schema import Group, Latency, Report, StageReport

HEAD = ("sent", "failed", "req/s", "tokens/s", "TTFT ms", "ITL ms", "end to end ms")
DRIFT_HEAD = ("drift", "first third", "last third", "ratio", "noise ±", "")
EXPLANATION = (
    "Latencies are p50 / p95 / p99 and count from the moment a request was due. TTFT: time to the first piece of"
    " output. ITL: time between two pieces."
)


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [summary(report)]
    for stage in report.stages:
        parts.append(f"## {stage.stage.name}: {stage.stage.load}, {stage.seconds:.1f} s")
        for kind, groups in (("task", stage.tasks), ("generation", stage.generations)):
            rows = [[name, *group_cells(group, report.has_goodput)] for name, group in groups.items()]
            parts += [table(head(kind, report.has_goodput), rows)] if rows else []
        parts += [table(DRIFT_HEAD, drift_rows(stage))] if stage.drift else []
        parts += [table(("error", "count", "for example"), error_rows(stage))] if stage.errors else []
    return "\n\n".join(parts) + "\n"


def summary(report: Report) -> str:
    """Title, a row per stage, actions, warnings."""
    parts = [f"# {report.scenario}: {_cell(report.target.model)} at {_cell(report.target.url)}"]
    parts += ["**Interrupted**: this is what was measured until then."] if report.interrupted else []
    parts += [table(stage_head(report), stage_rows(report)), " ".join(f"{EXPLANATION} {limits(report)}".split())]
    if report.capacity_per_second is not None:
        parts.append(f"Capacity, measured first in a closed loop: {report.capacity_per_second:.2f} requests a second.")
    if report.actions:
        parts.append(table(("at s", "action", "generation", "took ms", "result"), action_rows(report)))
    return "\n\n".join(parts + [f"> {_cell(line)}" for line in report.warnings])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (head, rule, *rows))


def number(value: float | None, digits: int = 1) -> str:
    """At most `digits` decimals, none from a thousand on."""
    return "-" if value is None else f"{value:,.{0 if value >= 1000 else digits}f}"


def three(latency: Latency) -> str:
    """p50 / p95 / p99 in milliseconds."""
    return " / ".join(number(value) for value in (latency.p50_ms, latency.p95_ms, latency.p99_ms))


def group_cells(group: Group, has_goodput: bool) -> list[str]:
    """The columns of `head`, but for the first."""
    rates = [number(group.requests_per_second, 2), number(group.tokens_per_second)]
    unfinished = f" + {group.unfinished:,} cut short" if group.unfinished else ""
    counts = [f"{group.sent:,}", f"{group.failed:,}{unfinished}"]
    good = [number(group.good_per_second, 2)] if has_goodput else []
    accuracy = "-" if group.accuracy is None else f"{group.accuracy.percent:.1f} of {group.accuracy.asked:,}"
    return [*counts, *rates, three(group.ttft), three(group.itl), three(group.e2e), *good, accuracy]


def head(first: str, has_goodput: bool) -> list[str]:
    return [first, *HEAD, *(["goodput/s"] if has_goodput else []), "accuracy %"]


def stage_head(report: Report) -> list[str]:
    first, *rest = head("stage", report.has_goodput)
    return [first, "load", *rest]


def stage_rows(report: Report) -> list[list[str]]:
    return [[one.stage.name, one.stage.load, *group_cells(one.total, report.has_goodput)] for one in report.stages]


def error_rows(stage: StageReport) -> list[list[str]]:
    return [[error.kind, f"{error.count:,}", error.example] for error in stage.errors]


def drift_rows(stage: StageReport) -> list[list[str]]:
    """First third against last third, and whether that is more than noise."""
    return [
        [
            one.statistic,
            number(one.first),
            number(one.last),
            f"{one.last / one.first:.3f}",
            f"{100 * (one.margin - 1):.1f} %",
            "drifts" if one.is_beyond_noise else "within noise",
        ]
        for one in stage.drift
    ]


def action_rows(report: Report) -> list[list[str]]:
    """When, what, which generation, how long it took, what came of it."""
    return [
        [f"{one.at_seconds:.1f}", one.kind, str(one.generation), f"{1000 * one.seconds:.0f}", one.error or "done"]
        for one in report.actions
    ]


def limits(report: Report) -> str:
    """The goodput's limits in a sentence; empty if there are none."""
    names = {"ttft_limit_ms": "TTFT", "itl_limit_ms": "mean ITL of the answer", "e2e_limit_ms": "end to end"}
    found = [f"{name} ≤ {report.settings[key]:g} ms" for key, name in names.items() if report.settings.get(key)]
    return f"Goodput counts answers with {', '.join(found)}." if found else ""


def _cell(text: str) -> str:
    """Text from outside that cannot break out of its table cell or become markup."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
