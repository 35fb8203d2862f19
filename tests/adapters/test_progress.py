"""What a person sees of long work: steps, a message, the time left; after a resume at this process's pace."""

import io
import re

import pytest
from rich.console import Console

from adapters import progress
from adapters.progress import Steps, track


class Clock:
    """Seconds pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), force_terminal=False))
    return clock


def printed() -> str:
    return progress.console.file.getvalue()  # type: ignore[attr-defined]


def test_lines_now_and_then_where_there_is_no_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Steps("training", 100, "steps") as steps:
        for _ in range(50):
            clock.now += 1
            steps.advance("loss 1.5, 10 tokens/s")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 21/100 steps, loss 1.5, 10 tokens/s, 79 s left",
        "training: 42/100 steps, loss 1.5, 10 tokens/s, 58 s left",
    ]
    assert "training: 50/100 steps in 50.0 s\n" in printed()


def test_what_an_earlier_process_did_does_not_count_as_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """80 of 100 steps were done before; 5 more at 5 s each: 15 are left, 75 s."""
    with Steps("training", 100, "steps", before=80) as steps:
        for _ in range(5):
            clock.now += 5
            steps.advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "training: 85/100 steps, 75 s left"
    assert "training: 85/100 steps in 25.0 s, 80 of them before" in printed()


def test_a_terminal_gets_a_bar_that_starts_where_it_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "console", console)
    with Steps("training", 10, "steps", before=7) as steps:
        steps.advance("loss 0.5")
        steps.bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "8/10" in shown and "loss 0.5" in shown


def test_track_gives_every_item_in_order(clock: Clock) -> None:
    assert list(track(iter("abc"), "letters", "letters")) == ["a", "b", "c"]
    assert "letters: 3/3 letters" in printed()
