"""Line charts as inline SVG: no script, no font, no colour of their own (the page's style sheet has those)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

WIDTH, HEIGHT = 860, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 32, 42
MAX_TICKS = 6
LOG_FROM = 8.0
HEADROOM = 1.12  # for the labels of marks
DOTS_UP_TO = 40  # with more points than this, dots on a line are only there for their tooltips
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A line; `style` names its colour in the style sheet. A point without a value is a gap."""

    name: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A vertical line at x with a label; `row` puts the label lower, out of its neighbours' way."""

    x: float
    label: str
    style: str = "mark"
    row: int = 0


@dataclass(frozen=True)
class Chart:
    """What to draw. `is_log`: a logarithmic y axis if the values span more than `LOG_FROM`, and none up to 0."""

    title: str
    x_label: str
    unit: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    is_log: bool = False
    x_from: float | None = None


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` element; text from outside is escaped by the XML library."""
    svg = ET.Element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    svg.set("aria-label", chart.title)
    xs = [x for one in chart.series for x, _ in one.points] + [mark.x for mark in chart.marks]
    xs += [] if chart.x_from is None else [chart.x_from]
    ys = [y for one in chart.series for _, y in one.points if y is not None and _is_shown(y, chart)]
    if chart.is_log and ys and max(ys) <= LOG_FROM * min(ys):
        chart = replace(chart, is_log=False)
    _text(svg, 4, 16, f"{chart.title}, {chart.unit}", "title")
    if not xs or not ys:
        _text(svg, WIDTH / 2, HEIGHT / 2, "nothing was measured", "tick", "middle")
        return ET.tostring(svg, encoding="unicode")
    x_ticks, y_ticks = ticks(min(xs), max(xs)), log_ticks(min(ys), max(ys)) if chart.is_log else ticks(0, max(ys))
    across = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, False)
    up = _scale(y_ticks[0], max(y_ticks[-1], HEADROOM * max(ys)), HEIGHT - BOTTOM, TOP, chart.is_log)
    _axes(svg, chart, x_ticks, y_ticks, across, up)
    for mark in chart.marks:
        _mark(svg, mark, across(mark.x))
    for one in chart.series:
        _line(svg, one, chart, across, up)
    _legend(svg, chart.series)
    return ET.tostring(svg, encoding="unicode")


def ticks(low: float, high: float) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from at most `low`, if that is 0, to at most `high`."""
    span = high - low
    if span <= 0:
        return [low, low + 1] if low == 0 else [low]
    raw = span / MAX_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, the first at most `low`, the last at least `high`; only powers if too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    first = max(index for index, value in enumerate(found) if value <= low)
    last = min(index for index, value in enumerate(found) if value >= high)
    return found[first : last + 1] if last > first else found[first : first + 2]


def _scale(low: float, high: float, start: float, end: float, is_log: bool) -> Callable[[float], float]:
    def place(value: float) -> float:
        if is_log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low) or 1)
        return (value - low) / ((high - low) or 1)

    return lambda value: start + (end - start) * place(value)


def _axes(
    svg: ET.Element,
    chart: Chart,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> None:
    for value in y_ticks:
        y = f"{up(value):.1f}"
        ET.SubElement(svg, "line", {"class": "grid", "x1": f"{LEFT}", "x2": f"{WIDTH - RIGHT}", "y1": y, "y2": y})
        _text(svg, LEFT - 8, up(value) + 4, f"{value:,.10g}", "tick", "end")
    for value in x_ticks:
        _text(svg, across(value), HEIGHT - BOTTOM + 18, f"{value:,.10g}", "tick", "middle")
    _text(svg, WIDTH - RIGHT, HEIGHT - 6, chart.x_label, "label", "end")


def _mark(svg: ET.Element, mark: Mark, x: float) -> None:
    ends = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": f"{TOP}", "y2": f"{HEIGHT - BOTTOM}"}
    ET.SubElement(svg, "line", {"class": mark.style, **ends})
    anchor = "end" if x > WIDTH - 120 else "start"
    _text(svg, x + (4 if anchor == "start" else -4), TOP + 8 + 12 * mark.row, mark.label, "mark-label", anchor)


def _line(
    svg: ET.Element, one: Series, chart: Chart, across: Callable[[float], float], up: Callable[[float], float]
) -> None:
    path, dots, is_down = [], [], False
    for (x, y), following in zip(one.points, [*one.points[1:], (0.0, None)], strict=True):
        if y is None or not _is_shown(y, chart):
            is_down = False
            continue
        path.append(f"{'L' if is_down else 'M'}{across(x):.1f} {up(y):.1f}")
        is_alone = not is_down and (following[1] is None or not _is_shown(following[1], chart))
        dots.append((x, y, is_alone or len(one.points) <= DOTS_UP_TO))
        is_down = True
    ET.SubElement(svg, "path", {"class": f"line {one.style}", "d": " ".join(path)})
    for x, y, is_visible in dots:
        place = {"cx": f"{across(x):.1f}", "cy": f"{up(y):.1f}", "r": "3"}
        dot = ET.SubElement(svg, "circle", {"class": f"dot {one.style}{'' if is_visible else ' hidden'}", **place})
        ET.SubElement(dot, "title").text = f"{one.name}: {y:,.4g} {chart.unit} at {x:,.4g} {chart.x_label}"


def _is_shown(y: float, chart: Chart) -> bool:
    return y > 0 or not chart.is_log


def _legend(svg: ET.Element, series: Sequence[Series]) -> None:
    """One text, so that the browser does the spacing."""
    text = ET.SubElement(svg, "text", {"x": f"{WIDTH - RIGHT}", "y": "16", "text-anchor": "end", "class": "label"})
    for one in series:
        ET.SubElement(text, "tspan", {"class": f"dot {one.style}"}).text = "\u00a0\u00a0\u00a0\u25cf\u00a0"
        ET.SubElement(text, "tspan").text = one.name


def _text(svg: ET.Element, x: float, y: float, text: str, style: str, anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": style}
    ET.SubElement(svg, "text", place).text = text
