"""Noise from one run against the spread of many, and what is called a difference."""

import math

import numpy as np
import pytest

from loadtest.errors import LoadTestError
from loadtest.report.compare import Comparison, as_markdown, compare
from loadtest.report.schema import StageReport
from tests.loadtest.reports import make_report, make_stage

SEEDS = range(20)


def verdicts(before: StageReport, after: StageReport, tolerance: float = 0.02) -> dict[str, str]:
    found = compare(make_report(before), make_report(after), tolerance).differences
    return {one.statistic: one.verdict for one in found}


@pytest.mark.parametrize("name", ["ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p99_ms", "e2e_p95_ms"])
def test_the_noise_of_one_run_is_the_spread_of_many(name: str) -> None:
    """The bootstrap's estimate, on average, against the spread of independent runs, which is the slow reference."""
    latency, _, quantile = name.partition("_")
    stages = [make_stage(seed=seed) for seed in SEEDS]
    spread = np.std([math.log(getattr(getattr(stage.total, latency), quantile)) for stage in stages], ddof=1)
    estimate = np.mean([stage.noise[name] for stage in stages])
    assert estimate == pytest.approx(spread, rel=0.45)  # the reference itself is only good to 15 %, p99 to more


def test_two_runs_of_the_same_thing_do_not_differ() -> None:
    found = [
        verdict for seed in SEEDS for verdict in verdicts(make_stage(seed=seed), make_stage(seed=100 + seed)).values()
    ]
    assert set(found) <= {"within noise", "better", "worse"}
    assert found.count("within noise") >= 0.97 * len(found)


def test_a_slower_server_is_found() -> None:
    found = verdicts(make_stage(seed=1), make_stage(seed=2, slower=1.3))
    assert {found[f"{name}_{percent}_ms"] for name in ("ttft", "itl", "e2e") for percent in ("p50", "p95")} == {"worse"}
    assert found["failed_percent"] == found["accuracy_percent"] == "within noise"
    back = verdicts(make_stage(seed=2, slower=1.3), make_stage(seed=1))
    assert back["itl_p50_ms"] == "better"


def test_the_tolerance_is_never_a_difference() -> None:
    before, after = make_stage(seed=1), make_stage(seed=2, slower=1.3)
    assert "worse" not in verdicts(before, after, tolerance=0.5).values()


def test_failures_and_wrong_answers_are_found() -> None:
    found = verdicts(make_stage(seed=1), make_stage(seed=2, failures=60, wrong=0.4))
    assert (found["failed_percent"], found["accuracy_percent"]) == ("worse", "worse")
    few = verdicts(make_stage(seed=1, requests=60), make_stage(seed=1, requests=60, failures=1))
    assert few["failed_percent"] == "within noise"


def test_more_throughput_is_better() -> None:
    found = verdicts(make_stage(rate=20), make_stage(rate=40, requests=800))
    assert (found["tokens_per_second"], found["requests_per_second"]) == ("better", "better")


def test_goodput_is_compared_where_both_have_limits() -> None:
    limits = {"ttft_limit_ms": 40.0}
    one, two = make_stage(seed=1, **limits), make_stage(seed=2, slower=1.5, **limits)
    assert verdicts(one, two)["good_per_second"] == "worse"
    assert "good_per_second" not in verdicts(make_stage(), make_stage())


def test_too_short_a_stage_is_not_judged() -> None:
    found = verdicts(make_stage(requests=20), make_stage(requests=20, slower=2.0))
    assert found["ttft_p50_ms"] == "noise unknown"


def test_stages_are_matched_by_name() -> None:
    before = make_report(make_stage("4/s"), make_stage("8/s"), scenario="sweep")
    after = make_report(make_stage("8/s", slower=2.0), make_stage("16/s"), scenario="sweep")
    comparison = compare(before, after, 0.02)
    assert {one.stage for one in comparison.differences} == {"8/s"}
    assert comparison.is_worse


def test_what_cannot_be_compared() -> None:
    with pytest.raises(LoadTestError, match="scenario steady, the other of soak"):
        compare(make_report(make_stage()), make_report(make_stage(), scenario="soak"), 0.02)
    with pytest.raises(LoadTestError, match="no stage in common"):
        compare(make_report(make_stage("4/s")), make_report(make_stage("8/s")), 0.02)


def test_other_causes_are_named() -> None:
    before = make_report(make_stage())
    after = make_report(make_stage(), limits={"rate": "4"}, interrupted=True)
    remarks = compare(before, after, 0.02).remarks
    assert "the settings differ: rate was [], then [4.0]" in remarks
    assert "B was interrupted" in remarks


def test_the_table() -> None:
    text = as_markdown(compare(make_report(make_stage(seed=1)), make_report(make_stage(seed=2, slower=2.0)), 0.02))
    (row,) = [line for line in text.splitlines() if "| itl_p50_ms |" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[4]) == pytest.approx(2.0, rel=0.05)
    assert cells[5].endswith("%") and cells[6] == "**worse**"
    assert as_markdown(Comparison((), ())).startswith("| stage |")
