"""The three files of a report: what is in them, and what must not be."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadtest.errors import LoadTestError
from loadtest.report.files import write_reports
from loadtest.report.html import html
from loadtest.report.markdown import markdown, table
from loadtest.report.plots import Chart, Mark, Series, draw, log_ticks, ticks
from loadtest.report.schema import Action, ErrorKind, Report, Target, read_report
from tests.loadtest.reports import make_report, make_stage

HOSTILE = '<script>alert("1|2")</script>'
VOID = {"meta", "link", "br", "img", "input", "hr"}


def hot_add() -> Report:
    actions = (
        Action(at_seconds=22.0, kind="activate", generation=4, seconds=0.5, error=None),
        Action(at_seconds=28.0, kind="rollback", generation=3, seconds=0.1, error="http 409: mismatch"),
    )
    stages = make_stage("quiet", failures=3), make_stage("hot-add", start=20.0)
    return make_report(*stages, scenario="hot-add", actions=actions)


def sweep() -> Report:
    stages = [make_stage(f"{rate}/s", rate=rate, slower=rate / 10) for rate in (5.0, 20.0, 80.0)]
    return make_report(*stages, scenario="sweep", limits={"ttft_limit_ms": 50})


class Page(HTMLParser):
    """Every tag, and whether all of them are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("report", [make_report(make_stage()), hot_add(), sweep(), make_report()])
def test_json_is_read_back_as_it_was(report: Report, tmp_path: Path) -> None:
    files = write_reports(report, tmp_path / "new" / "out")
    assert [file.name for file in files] == ["report.json", "report.md", "report.html"]
    assert read_report(tmp_path / "new" / "out") == read_report(files[0]) == report
    text = files[0].read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_json_names_its_units() -> None:
    (stage,) = json.loads(make_report(make_stage()).model_dump_json())["stages"]
    assert stage["total"]["ttft"].keys() == {"count", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"}
    assert stage["total"]["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "Invalid JSON"),
        ("{}", "format_version"),
        ('{"format_version": 2}', "format_version: Input should be 1.*format version 1"),
    ],
)
def test_what_is_no_report(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(LoadTestError) as error:
        read_report(tmp_path)
    assert re.search(says, str(error.value)) or "version" in str(error.value)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadTestError, match="cannot be written .*--out"):
        write_reports(make_report(), tmp_path / "file")


@pytest.mark.parametrize("report", [make_report(make_stage()), hot_add(), sweep(), make_report()])
def test_the_page_is_whole_and_asks_nobody(report: Report) -> None:
    page = Page(html(report))
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    for _, attributes in page.tags:
        assert not attributes.keys() & {"src", "href", "srcset", "action"}
    assert "@import" not in "".join(page.words) and "url(" not in "".join(page.words)


def test_the_page_shows_numbers_and_charts() -> None:
    report = sweep()
    page = Page(html(report))
    drawn = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert drawn[:4] == [
        "Time to first token against load",
        "Time between tokens against load",
        "End to end against load",
        "Throughput against load",
    ]
    p50 = report.stages[1].total.ttft.p50_ms
    assert any(f"{p50:,.1f} / " in words for words in page.words)
    assert "Goodput counts answers with TTFT ≤ 50 ms." in " ".join(" ".join(page.words).split())


def test_activations_are_marked_in_the_timeline() -> None:
    text = html(hot_add())
    assert '<p class="soft">The stage hot-add:</p>' in text and "The stage" not in html(make_report(make_stage()))
    assert text.count("→ 4</text>") == 4 and text.count("← 3 failed</text>") == 4
    assert "http 409: mismatch" in text
    assert "generation 3" in text and "generation 4" in text


def test_texts_from_outside_stay_texts() -> None:
    stage = make_stage(failures=1)
    hostile = stage.model_copy(
        update={
            "errors": (ErrorKind(kind=HOSTILE, count=1, example=HOSTILE),),
            "tasks": {HOSTILE: stage.total},
            "generations": {HOSTILE: stage.total},
            "timeline": tuple(one.model_copy(update={"generations": {HOSTILE: 1}}) for one in stage.timeline),
        }
    )
    report = make_report(hostile, target=Target(url="http://h", model=HOSTILE, api="chat"), warnings=(HOSTILE,))
    assert all(tag != "script" for tag, _ in Page(html(report)).tags)
    text = markdown(report)
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 10, 11}  # errors, groups, stages


def test_markdown_has_every_group() -> None:
    text = markdown(hot_add())
    for expected in (
        "# hot-add: demo at",
        "| quiet |",
        "## hot-add",
        "| foods |",
        "| 4 |",
        "| http 429 | 3 |",
        "rollback",
    ):
        assert expected in text


def test_an_interrupted_run_says_so() -> None:
    report = make_report(make_stage(), interrupted=True)
    assert "**Interrupted**" in markdown(report)
    assert "Interrupted: this is what was measured until then." in html(report)


def test_a_table_cell_cannot_end_its_cell() -> None:
    assert table(("a", "b"), [("x|y\n", "\\")]).splitlines()[-1] == "| x\\|y | \\\\ |"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.003), (5, 1e6), (3, 3.5), (0, 0), (7, 7)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 9
    assert all(low - 1e-9 <= tick <= max(high, low + 1) for tick in found)
    assert found == sorted(set(found))


@pytest.mark.parametrize(("low", "high"), [(0.9, 1100), (3, 4), (10, 100), (1e-3, 1e6), (2, 2)])
def test_log_ticks_enclose_the_values(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 13


def test_a_chart_without_values_says_so() -> None:
    assert "nothing was measured" in draw(Chart("t", "x", "ms", [Series("s", "low", [(0, None)])]))


def test_a_gap_is_not_bridged() -> None:
    svg = draw(Chart("t", "x", "ms", [Series("s", "low", [(0, 1), (1, 2), (2, None), (3, 1)])], [Mark(1, "here")]))
    (path,) = re.findall(r' d="([^"]*)"', svg)
    assert [step[0] for step in re.findall(r"[ML][\d. ]+", path)] == ["M", "L", "M"]
    assert svg.count("<circle") == 3


def test_a_lonely_point_is_seen() -> None:
    """Of many points only those without neighbours get a visible dot: no line shows them."""
    points: list[tuple[float, float | None]] = [(float(x), 1.0) for x in range(60)]
    points[30] = points[32] = (30.0, None)
    svg = draw(Chart("t", "x", "ms", [Series("s", "low", points)]))
    assert svg.count('class="dot low hidden"') == 57
    assert svg.count('<circle class="dot low"') == 1
