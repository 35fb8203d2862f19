"""Visible on a terminal and in a log."""

import sys

from deploy import progress
from deploy.progress import Progress


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    steps = Progress(2)
    steps.step("fetch")
    for _ in range(8):
        steps.tick("busy")
    steps.done()
    steps.step("install")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["[1/2] fetch", "[1/2] fetch: busy (16 s)", "[1/2] fetch: busy (32 s)", lines[3], "[2/2] install"]
    assert lines[3].startswith("[1/2] fetch: done (")


def test_a_terminal_gets_one_line_that_changes(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    steps = Progress(1)
    steps.step("fetch")
    steps.tick("x" * 500)
    steps.done("there")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.count("\r\033[K") == 3
    assert "x" * 500 not in out
