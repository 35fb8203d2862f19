"""The benchmark's loop: which engines are up when, what is written down, and what is said when one dies."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adapters.asked_process import MARK
from seta_runtime.bench import __main__ as command
from seta_runtime.bench import engines
from seta_runtime.bench.engine_process import EngineProcess
from seta_runtime.bench.engines import Running
from seta_runtime.bench.groups import groups
from seta_runtime.bench.points import Point
from seta_runtime.bench.slices import Slice
from seta_runtime.bench.variants import Variant

MEASURED = Slice(8, [0.5], 0.5, 0.0, 0)


class Scripted:
    """An engine process that is up from its making to its stop; `events` are of all of them."""

    events: list[str]

    def __init__(self, variant: Variant, prompts: list[list[int]], log: Path) -> None:
        self.name, self.ready = variant.name, {"start_seconds": 1.0}
        self.events.append(f"+{self.name}")

    def begin(self, point: Point, number: int) -> None:
        pass

    def slice(self, steps: int) -> Slice:
        return MEASURED

    def state(self) -> dict[str, Any]:
        self.events.append(f"?{self.name}")
        return {"rss_bytes": 1, "stats": {"routed_tokens": 3, "base_tokens": 1} if self.name == "routed" else {}}

    def stop(self) -> None:
        self.events.append(f"-{self.name}")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Running:
    monkeypatch.setattr(Scripted, "events", [], raising=False)
    monkeypatch.setattr(engines, "EngineProcess", Scripted)
    names = {name for group in groups([4, 64]) for name in group.engines}
    return Running({name: Variant(name, "plain", "model") for name in names}, [[1]], tmp_path)


def test_engines_are_up_while_a_group_needs_them(running: Running) -> None:
    log = io.StringIO()
    found = command.measure(running, groups([4, 64]), 0.0, log)
    base = [f"{sign}{name}" for sign in "+?" for name in ("plain", "routed", "base_routed", "plain_again")]
    two = [f"{sign}two_generations" for sign in "+?-"]
    lora = ["+vllm_lora", "?vllm_lora", "-plain", "-routed", "-vllm_lora"]
    tasks = [f"{sign}routed_{size}_tasks" for sign in "+?-" for size in (4, 64)]
    assert Scripted.events == [*base, "-base_routed", "-plain_again", *two, *lora, *tasks]
    assert running.states["routed"] == {"start_seconds": 1.0, "rss_bytes": 1, "routed_share_of_tokens": 0.75}
    assert set(running.states) == set(running.variants) and len(found) == 13
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert len(lines) == sum(len(slices) for passes in found.values() for one in passes for slices in one.values())
    assert lines[0] == {"group": "base", "point": "decode_1", "pass": 0, "engine": "plain"} | asdict(MEASURED)


def test_every_engine_gets_an_equal_share_of_the_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, float]] = []

    def passes(run: Any, seconds: float) -> list[Any]:
        given.append((len(run.engines), seconds))
        return [run.one_pass()]

    monkeypatch.setattr(command, "passes", passes)
    command.measure(running, groups([4, 64]), 380.0, io.StringIO())
    assert sum(seconds for _, seconds in given) == pytest.approx(380.0)
    assert all(seconds == pytest.approx(10.0 * number) for number, seconds in given)


def test_engines_are_stopped_after_an_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.start(groups([4, 64])[0])
    running.stop()
    assert sorted(Scripted.events[-4:]) == ["-base_routed", "-plain", "-plain_again", "-routed"]
    assert not running.processes


def scripted_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_question_has_the_answer_among_what_else_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"read line; echo noise; echo '{MARK}%s'\n"
    answers = ['{"start_seconds": 2.5}', "{}", json.dumps(asdict(MEASURED))]
    scripted_python(monkeypatch, tmp_path, "".join(said % answer for answer in answers) + "read line")
    engine = EngineProcess(Variant("plain", "plain", "model"), [[1]], tmp_path / "log")
    try:
        assert engine.ready == {"start_seconds": 2.5}
        engine.begin(Point("decode_1", 1), 0)
        assert engine.slice(1) == MEASURED
    finally:
        engine.stop()
    assert engine.process.returncode is not None


def test_a_dead_engine_is_an_error_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_python(monkeypatch, tmp_path, "read line\necho no such model >&2\nexit 3")
    with pytest.raises(RuntimeError, match="engine broken ended with 3:\nno such model"):
        EngineProcess(Variant("broken", "plain", "model"), [[1]], tmp_path / "log")
