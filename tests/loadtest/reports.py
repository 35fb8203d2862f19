"""Reports made of synthetic outcomes, in no time."""

import random
from datetime import UTC, datetime
from functools import cache
from typing import Any

from loadtest.recorder import Recorder
from loadtest.report.schema import Action, Report, StageReport, Target
from loadtest.report.summary import stage_report, warnings
from loadtest.settings import Settings
from loadtest.stages import Stage
from tests.loadtest.outcomes import completed, failed


@cache
def make_stage(
    name: str = "steady",
    *,
    seed: int = 0,
    slower: float = 1.0,
    requests: int = 400,
    failures: int = 0,
    rate: float = 20.0,
    start: float = 0.0,
    wrong: float = 0.1,
    **limits: Any,
) -> StageReport:
    """Latencies are lognormal; `slower` multiplies all of them."""
    rng = random.Random(seed)
    recorder = Recorder(Settings(scenario="steady", **limits), start)
    for index in range(requests):
        due, task = start + index / rate, rng.choice(["foods", "licences"])
        if index < failures:
            recorder.add(failed(due, task=task))
            continue
        ttft, *gaps = (slower * rng.lognormvariate(-3.5, 0.25) for _ in range(9))
        is_right = rng.random() >= wrong
        recorder.add(completed(due, ttft, tuple(gaps), task=task, generation=rng.choice("34"), is_right=is_right))
    stage = Stage(name=name, arrivals="poisson", rate=rate, seconds=requests / rate)
    return stage_report(stage, recorder, 0.0)


def make_report(
    *stages: StageReport, scenario: str = "steady", actions: tuple[Action, ...] = (), **more: Any
) -> Report:
    target = more.pop("target", Target(url="http://127.0.0.1:8000", model="demo", api="chat"))
    settings = Settings(scenario="steady", **more.pop("limits", {}))
    return Report(
        version="0.1.0",
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        scenario=scenario,
        target=target,
        settings=settings.model_dump(mode="json"),
        interrupted=more.pop("interrupted", False),
        capacity_per_second=None,
        warnings=more.pop("warnings", tuple(warnings(stages))),
        stages=stages,
        actions=actions,
    )
