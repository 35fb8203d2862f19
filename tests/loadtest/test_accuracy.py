import asyncio
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from loadtest.accuracy import main, measure
from loadtest.workload import Row
from tests.loadtest.scripted import MODEL, Script


def row(task: str, answer: str, **script: object) -> Row:
    return Row(task=task, prompt=Script(delays=(0.0, 0.0), **script).prompt, answer=answer)  # type: ignore[arg-type]


def test_every_row_is_asked_once(scripted: str) -> None:
    rows = [row("a", "word word"), row("a", "other"), row("b", "word word", generation="4"), row("b", "", status=500)]
    recorder = asyncio.run(measure(scripted, MODEL, rows, concurrency=3))
    assert {task: (one.sent, one.right, one.failed) for task, one in recorder.tasks.items()} == {
        "a": (2, 1, 0),
        "b": (2, 1, 1),
    }
    assert {name: one.completed for name, one in recorder.generations.items()} == {"3": 2, "4": 1}
    assert recorder.errors == {"http 500": 1}


def test_the_command(scripted: str, tmp_path: Path) -> None:
    app = Typer()
    app.command()(main)
    file = tmp_path / "w"
    file.write_text("".join(one.model_dump_json(exclude_none=True) + "\n" for one in [row("a", "word word")] * 3))
    options = ["--url", scripted, "--model", MODEL, "--test", str(file), "--limit", "2"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0 and "100.00" in done.stdout
    assert "answered by generation: 3 (2)" in done.stdout
    file.write_text(row("a", "x", status=500).model_dump_json(exclude_none=True))
    assert CliRunner().invoke(app, options).exit_code == 1
