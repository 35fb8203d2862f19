"""A slice: its time, its tokens and what disturbed it."""

from pathlib import Path

import pytest

from seta_runtime.bench import slices
from seta_runtime.bench.slices import IdleMeter, steal_seconds, timed


def test_every_step_has_its_time_and_its_tokens_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 1.0, 3.0, 9.0, 9.25])
    cpu = iter([1.0, 3.0])
    monkeypatch.setattr(slices.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(slices.time, "process_time", lambda: next(cpu))
    found = timed(lambda: 8, 3)
    assert found.step_seconds == [0.5, 2.0, 0.25] and found.seconds == 2.75
    assert found.tokens == 24 and found.cpu_seconds == 2.0


def test_stolen_time_is_read_from_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    monkeypatch.setattr(slices, "STAT", stat)
    monkeypatch.setattr(slices.os, "sysconf", lambda name: 100)
    assert steal_seconds() == 2.5
    monkeypatch.setattr(slices, "STAT", tmp_path / "missing")
    assert steal_seconds() == 0.0


def test_cpu_time_counts_as_idle_only_between_rest_and_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, clock = iter([1.0, 1.5, 9.0, 9.0]), iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(slices.time, "process_time", lambda: next(cpu))
    monkeypatch.setattr(slices.time, "monotonic", lambda: next(clock))
    meter = IdleMeter()
    meter.wake()
    assert meter.share == 0.0
    for _ in range(2):
        meter.rest()
        meter.wake()
    assert meter.share == 0.5 / 20
