"""From cells to JSON, table and page, on numbers worked out by hand."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adapters.benchmark.records import CellResult, Routing, Stage
from adapters.benchmark.report import page, write_report
from adapters.benchmark.results import results_table, summarise, write_results
from adapters.benchmark.svg import Bar, Line, bars, heat_map, lines
from tests.adapters.benchmark.test_cells import RUN, cell, result, stage

ROUTING = Routing(confusion=((90.0, 5.0, 5.0), (0.0, 100.0, 0.0)), by_position={1: 25.0, 4: 75.0})


def measured(spec: str, stages: tuple[Stage, ...]) -> CellResult:
    return result(cell(spec)).model_copy(update={"stages": stages})


@pytest.fixture
def summary() -> dict[str, Any]:
    routed = stage(40.0, 75.0).model_copy(update={"routing": ROUTING, "routing_stripped": ROUTING})
    untimed = stage(25.0, 75.0).model_copy(update={"seconds": None, "blocks": None})
    return summarise(
        RUN,
        [
            measured("seta", (stage(50.0), routed)),
            measured("seq-lora", (stage(50.0).model_copy(update={"blocks": None}), untimed)),
            measured("joint", (stage(60.0, 70.0).model_copy(update={"tasks": ("a", "b"), "blocks": None}),)),
        ],
    )


def test_the_numbers_of_each_method(summary: dict[str, Any]) -> None:
    seta, seq, joint = summary["methods"]
    assert (seta["op"], seta["bwt"], seta["ft"], seta["right_after_learning"]) == (57.5, -10.0, 10.0, 62.5)
    assert seta["matrix"] == [[50.0], [40.0, 75.0]] and seta["blocks"] == [(3, 4), (3, 4)]
    assert (seta["seconds"], seta["tokens_per_second"], seta["is_fully_timed"]) == (3.0, 66.7, True)
    assert seta["routing"]["confusion"][0] == [90.0, 5.0, 5.0]
    assert (seq["seconds"], seq["tokens_per_second"], seq["is_fully_timed"]) == (1.5, 66.7, False)
    assert (joint["op"], joint["bwt"], joint["ft"], joint["matrix"]) == (65.0, None, None, [[60.0, 70.0]])
    assert summary["sequence"] == "a,b" and summary["seed"] == 0 and summary["versions"] == {"python": "3.12"}


def test_what_is_written(summary: dict[str, Any], tmp_path: Path) -> None:
    write_results(tmp_path, summary)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == json.loads(json.dumps(summary))
    (copy,) = (tmp_path / "comparisons").iterdir()
    assert copy.name == "a-b-seed0-steps2-dddddddd.json" and json.loads(copy.read_text()) == found
    text = (tmp_path / "table.txt").read_text()
    for method in ("seta", "seq-lora", "joint"):
        assert method in text
    assert "57.50" in text and "-10.00" in text
    assert len(results_table(summary).rows) == 3


class Page(HTMLParser):
    """Checks that every tag is closed; collects text, and whatever the page would have to load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "rect", "circle", "polyline"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Page:
    found = Page()
    found.feed(html)
    assert found.open == []
    return found


def test_the_page_shows_every_comparison_and_loads_nothing(summary: dict[str, Any], tmp_path: Path) -> None:
    write_results(tmp_path, summary)
    write_results(tmp_path, {**summary, "sequence": "c<d", "tasks": ["c", "<d"]})
    html = write_report(tmp_path).read_text(encoding="utf-8")
    found = parsed(html)
    assert found.loads == [] and "http" not in html
    text = " ".join(found.text)
    for part in ("Overall performance", "a,b, seed 0", "c<d, seed 0", "seta", "joint", "57.50", "-10.00", "sub-blocks"):
        assert part in text
    assert html.count("<figure>") == 2 * (3 + 3 + 4 + 3)


def test_one_comparison_needs_no_overview(summary: dict[str, Any]) -> None:
    assert "Overall performance</h2>" not in page([json.loads(json.dumps(summary))])
    assert parsed(page([])).text


def shapes(figure: str, tag: str) -> list[dict[str, str]]:
    svg = figure[figure.index("<svg") : figure.index("</svg>") + 6]
    return [element.attrib for element in ElementTree.fromstring(svg).iter(tag)]


def test_bars_start_at_zero_and_scale() -> None:
    drawn = shapes(bars("t", [Bar("a", 10.0, "10"), Bar("b", 5.0, "5"), Bar("c", None, "–")]), "rect")
    assert len(drawn) == 2
    assert drawn[0]["x"] == drawn[1]["x"]
    assert float(drawn[0]["width"]) == pytest.approx(2 * float(drawn[1]["width"]), abs=0.1)


def test_negative_bars_end_at_zero() -> None:
    down, up = shapes(bars("t", [Bar("a", -4.0, "-4"), Bar("b", 4.0, "4")]), "rect")
    assert float(down["x"]) + float(down["width"]) == pytest.approx(float(up["x"]), abs=0.2)
    assert float(down["width"]) == pytest.approx(float(up["width"]), abs=0.2)


def test_heat_follows_the_value() -> None:
    drawn = shapes(heat_map("t", ["r", "<s>"], ["a", "b"], [[0.0], [100.0, 55.0]]), "rect")
    assert [cell["class"] for cell in drawn] == ["heat h0", "heat h9", "heat h5"]


def test_lines_leave_gaps_out() -> None:
    figure = lines(
        "t", ["1", "2"], [Line("x", [0.0, 100.0]), Line("y", [50.0, None])], low=0, high=100, unit="", axis=""
    )
    top, bottom = (float(dot["cy"]) for dot in (shapes(figure, "circle")[1], shapes(figure, "circle")[0]))
    assert len(shapes(figure, "circle")) == 3 and top < bottom
    assert float(shapes(figure, "circle")[2]["cy"]) == pytest.approx((top + bottom) / 2)


def test_nothing_but_zeros_can_be_drawn() -> None:
    assert shapes(bars("t", [Bar("a", 0.0, "0")]), "rect")
    assert shapes(lines("t", ["1"], [Line("x", [0.0])], low=0, high=0, unit="", axis=""), "circle")
