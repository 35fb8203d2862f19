"""Tables: nothing is cut off on a narrow terminal, and one row is one line in a pipe."""

import re
import sys

import pytest

from server.tables import print_table

COLUMNS = ("generation", "in flight", "created", "tasks")
MANY = "30, newest [bold]a_very_long_name_of_a_task"
ROWS = [(3, "", "2026-11-21 12:34:56", ""), (104, 12, "2026-11-22 01:02:03", MANY)]


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_a_pipe_gets_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "generation" and "in flight" in head
    assert first == "3                      2026-11-21 12:34:56"
    assert second.endswith(f"12         2026-11-22 01:02:03  {MANY}")


@pytest.mark.parametrize("width", [80, 60, 48])
def test_a_narrow_terminal_shows_every_character(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_table(COLUMNS, ROWS, whole=("generation", "in flight"))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width and "…" not in shown
    tasks = "".join(line[lines[1].index("tasks") :] for line in lines[3:])
    assert squeezed(tasks) == squeezed(MANY)
    assert "104" in shown and "2026" in shown


def test_a_table_without_rows_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [])
    assert capsys.readouterr().out == "generation  in flight  created  tasks\n"
