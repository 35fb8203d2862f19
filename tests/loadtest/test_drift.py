import random

from loadtest.recorder import Recorder
from loadtest.report.markdown import markdown
from loadtest.report.summary import stage_report
from loadtest.settings import Settings
from loadtest.stages import Stage
from tests.loadtest.outcomes import completed
from tests.loadtest.reports import make_report


def soak(seed: int, growth: float, seconds: int = 120) -> dict[str, str]:
    """A soak of two requests a second whose time between tokens grows by `growth` from start to end."""
    rng = random.Random(seed)
    recorder = Recorder(Settings(scenario="soak"), 0.0)
    for index in range(2 * seconds):
        slower = 1 + (growth - 1) * index / (2 * seconds)
        gaps = tuple(slower * rng.lognormvariate(-3.5, 0.3) for _ in range(8))
        recorder.add(completed(index / 2, rng.lognormvariate(-3, 0.3), gaps))
    stage = stage_report(Stage(name="soak", arrivals="poisson", rate=2, seconds=seconds), recorder, 0.0)
    assert ("| drift |" in markdown(make_report(stage, scenario="soak"))) == bool(stage.drift)
    return {one.statistic: "drifts" if one.is_beyond_noise else "steady" for one in stage.drift}


def test_a_steady_soak_does_not_drift() -> None:
    found = [verdict for seed in range(12) for verdict in soak(seed, 1.0).values()]
    assert len(found) == 12 * 9
    assert found.count("drifts") <= 2


def test_a_growing_latency_is_found() -> None:
    found = soak(0, 1.6)
    assert found["itl_p50_ms"] == found["itl_p95_ms"] == "drifts"
    assert found["ttft_p50_ms"] == "steady"


def test_a_short_soak_is_not_judged() -> None:
    assert soak(0, 1.6, seconds=10) == {}
