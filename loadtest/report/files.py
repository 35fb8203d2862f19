"""The three files of a report."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoadTestError
from .html import html
from .markdown import markdown
from .schema import Report


def write_reports(report: Report, directory: Path) -> list[Path]:
    """Write report.json, report.md and report.html; their paths. Raises LoadTestError."""
    texts = {
        "report.json": report.model_dump_json(indent=1) + "\n",
        "report.md": markdown(report),
        "report.html": html(report),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoadTestError(
            f"{directory}: the reports cannot be written ({error.strerror}); name another --out"
        ) from error
    return [directory / name for name in texts]
