"""The command line: a grid on the tiny model, run, widened, interrupted, shared with another process."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.benchmark import grid as grid_module
from adapters.benchmark.__main__ import app
from adapters.benchmark.cells import Cell, CellStore

SETTINGS = ["--set", "batch_size=4", "--set", "rank=4", "--steps", "1"]
SETA = ["--set", "block_size=32", "--set", "trunk_layers=1"]


def benchmark(data: Path, model: Path, out: Path, methods: str, *options: str) -> Result:
    required = ["--data", data, "--model", model, "--out", out, "--sequence", "colours,names", "--methods", methods]
    arguments = ["grid", *required, *SETTINGS, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def results(out: Path) -> list[str]:
    return [method["method"] for method in json.loads((out / "results.json").read_text())["methods"]]


def test_a_grid_is_widened_and_nothing_is_run_twice(
    data_dir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = benchmark(data_dir, tiny_model, tmp_path, "seq-lora")
    assert first.exit_code == 0, first.output
    assert results(tmp_path) == ["seq-lora"] and "seq-lora" in first.stdout
    assert (tmp_path / "report.html").is_file() and (tmp_path / "table.txt").is_file()
    run: list[str] = []
    run_cell = grid_module.run_cell

    def watched(cell: Cell, *arguments: object) -> object:
        run.append(cell.method.label)
        return run_cell(cell, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(grid_module, "run_cell", watched)
    second = benchmark(data_dir, tiny_model, tmp_path, "seta,seta:density=0.25,seq-lora", *SETA)
    assert second.exit_code == 0, second.output
    assert run == ["seta", "seta:density=0.25"]
    assert results(tmp_path) == ["seta", "seta:density=0.25", "seq-lora"]


def test_a_cell_that_another_process_holds_is_skipped(data_dir: Path, tiny_model: Path, tmp_path: Path) -> None:
    def holding(cell: Cell, *_: object) -> None:
        raise AssertionError(f"{cell.method.label} is not ours")

    found: list[Cell] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_module, "run_cell", lambda cell, *_: found.append(cell))
        assert benchmark(data_dir, tiny_model, tmp_path, "seq-lora").exit_code == 0
        patch.setattr(grid_module, "run_cell", holding)
        with CellStore(tmp_path / "cells").claim(found[0]) as is_ours:
            assert is_ours
            result = benchmark(data_dir, tiny_model, tmp_path, "seq-lora")
    assert result.exit_code == 0 and "1 cell(s) are with another process" in result.stderr


def test_ctrl_c_says_what_is_kept(
    data_dir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grid_module, "run_cell", interrupt)
    result = benchmark(data_dir, tiny_model, tmp_path, "seq-lora")
    assert result.exit_code == 130 and "every finished task is kept" in result.stderr


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("seta,nosuch", [], "method 'nosuch' found"),
        ("seta", ["--set", "density=2"], "density: "),
        ("seq-lora", ["--sequence", "colours,nosuch"], "no task 'nosuch'"),
        ("seq-lora", ["--model", "no/such/model"], "there is no directory"),
    ],
)
def test_what_cannot_be_is_one_line_and_makes_nothing(
    methods: str, options: list[str], message: str, data_dir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    result = benchmark(data_dir, tiny_model, tmp_path / "out", methods, *options)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("seta: ")]
    assert message in line
    assert not (tmp_path / "out").exists()
