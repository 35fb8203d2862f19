"""Three kinds of plot as inline SVG, from numbers and labels alone: bars, a heat map, lines.

Colours and fonts come from the page's style sheet (`report.py`), so plots follow its light and dark themes. Every mark
carries its exact value as a tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

CHAR = 6.7
"""Width of a character at the plots' 12 px, on average."""
ROW = 24
CELL_WIDTH, CELL_HEIGHT = 56, 30
MAX_LABEL = 26


@dataclass(frozen=True)
class Bar:
    """`value` None: not measured, or not defined for this row. `role`: a CSS class, `own`, `other` or `ceiling`.

    `interval`: drawn as a thin line over the end of a bar whose value is not negative.
    """

    label: str
    value: float | None
    text: str
    role: str = "other"
    interval: tuple[float, float] | None = None

    @property
    def reach(self) -> float:
        """The largest value that is drawn."""
        return max([self.value or 0.0, *(self.interval or ())])


@dataclass(frozen=True)
class Line:
    """`values[i]` belongs to the chart's i-th position; None leaves a gap."""

    label: str
    values: Sequence[float | None]
    role: str = "own"


def bars(title: str, rows: Sequence[Bar], width: int = 400) -> str:
    """Horizontal bars from zero, which may lie anywhere between the smallest and the largest value."""
    values = [row.value for row in rows if row.value is not None]
    low, high = min([0.0, *values]), max([0.0, *(row.reach for row in rows)])
    left = CHAR * max((len(_short(row.label)) for row in rows), default=0) + 12
    room = CHAR * max((len(row.text) for row in rows), default=0) + 14
    start, stop = left + (room if low < 0 else 0), width - (room if high > 0 or low == high else 8)
    scale = (stop - start) / (high - low or 1.0)
    zero = start - low * scale
    parts = []
    for number, row in enumerate(rows):
        y = number * ROW + 6
        parts.append(_text(left - 8, y + 13, _short(row.label), "label end", row.label))
        if row.value is None:
            parts.append(_text(zero + 6, y + 13, "–", "label"))
            continue
        x, length = (zero, row.value * scale) if row.value >= 0 else (zero + row.value * scale, -row.value * scale)
        parts.append(
            f'<rect class="bar {row.role}" x="{x:.1f}" y="{y + 1}" width="{max(length, 1):.1f}" height="16" rx="3">'
            f"<title>{escape(row.label)}: {escape(row.text)}</title></rect>"
        )
        after = row.value >= 0
        if row.interval is not None:
            first, last = row.interval
            parts.append(_interval(zero + scale * first, zero + scale * last, y + 9))
        at = zero + row.reach * scale + 6 if after else x - 6
        parts.append(_text(at, y + 13, row.text, "value" if after else "value end"))
    height = len(rows) * ROW + 8
    parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="2" y2="{height - 2}"/>')
    return _figure(title, width, height, parts)


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Percent points 0 to 100 as a grid; rows may be shorter than there are columns."""
    left = CHAR * max(len(_short(row)) for row in rows) + 12
    top = 24
    parts = []
    for number, column in enumerate(columns):
        fits = _short(column, int(CELL_WIDTH / CHAR))
        parts.append(_text(left + (number + 0.5) * CELL_WIDTH, top - 9, fits, "label middle", column))
    for i, row in enumerate(rows):
        y = top + i * CELL_HEIGHT
        parts.append(_text(left - 8, y + CELL_HEIGHT / 2 + 4, _short(row), "label end", row))
        for j, value in enumerate(values[i]):
            if value is not None:
                parts.append(_cell(left + j * CELL_WIDTH, y, value, f"{row} × {columns[j]}"))
    return _figure(title, left + len(columns) * CELL_WIDTH + 4, top + len(rows) * CELL_HEIGHT + 4, parts)


def lines(
    title: str, positions: Sequence[str], series: Sequence[Line], *, low: float, high: float, unit: str, axis: str
) -> str:
    """Lines over evenly spaced positions; the last point of each carries its value, a legend the names."""
    width, height, left, right, top, bottom = 460, 250, 52, 62, 34, 46
    step = (width - left - right) / max(1, len(positions) - 1)
    scale = (height - top - bottom) / ((high - low) or 1.0)

    def place(index: int, value: float) -> tuple[float, float]:
        return left + index * step, height - bottom - (value - low) * scale

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        y = place(0, value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{value:,.0f}{unit}", "label end"))
    for index, name in enumerate(positions):
        parts.append(_text(left + index * step, height - bottom + 18, _short(name, 10), "label middle", name))
    parts.append(_text((left + width - right) / 2, height - 6, axis, "label middle"))
    for number, line in enumerate(series):
        points = [(*place(i, v), v) for i, v in enumerate(line.values) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline class="line {line.role}" points="{path}"/>')
        for x, y, value in points:
            parts.append(
                f'<circle class="dot {line.role}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
                f"<title>{escape(line.label)}: {value:,.1f}{unit}</title></circle>"
            )
        if points:
            x, y, value = points[-1]
            parts.append(_text(x + 9, y + 4, f"{value:,.4g}{unit}", "value"))
        at = left + number * (width - left) / max(1, len(series))
        parts.append(f'<rect class="bar {line.role}" x="{at:.0f}" y="6" width="14" height="4" rx="2"/>')
        parts.append(_text(at + 20, 13, line.label, "label"))
    return _figure(title, width, height, parts)


def _interval(start: float, stop: float, y: float) -> str:
    """A line with a tick at both ends."""
    path = f"M{start:.1f} {y}H{stop:.1f}M{start:.1f} {y - 4}v8M{stop:.1f} {y - 4}v8"
    return f'<path class="interval" d="{path}"/>'


def _cell(x: float, y: float, value: float, what: str) -> str:
    """A square of the sequential scale; the text's colour keeps its contrast."""
    level = min(9, max(0, int(value / 10)))
    return (
        f'<rect class="heat h{level}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{CELL_WIDTH - 2}" '
        f'height="{CELL_HEIGHT - 2}" rx="3"><title>{escape(what)}: {value:.2f} %</title></rect>'
        + _text(x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2 + 4, f"{value:.1f}", f"cell c{level} middle")
    )


def _text(x: float, y: float, text: str, kind: str, full: str = "") -> str:
    tip = f"<title>{escape(full)}</title>" if full and full != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{tip}{escape(text)}</text>'


def _short(label: str, longest: int = MAX_LABEL) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _figure(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
