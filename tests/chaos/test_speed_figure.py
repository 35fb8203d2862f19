"""The speed figure with its three processes, on the tiny model: too slow for the default suite."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.benchmark.__main__ import app
from adapters.data import Example
from tests.adapters.benchmark.factory import THINGS, write_task
from tests.tiny import make_tiny_model


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    examples = [Example(task="colours", prompt=f"What colour is the {thing}?", answer="blue") for thing in THINGS]
    write_task(tmp_path / "data" / "colours", examples, num_test=4)
    return tmp_path / "data"


def speed(data: Path, model: Path, out: Path) -> Result:
    options = ["--data", data, "--task", "colours", "--model", model, "--out", out, "--rounds", 1]
    return CliRunner().invoke(app, ["speed", *(str(option) for option in options)])


def test_three_processes_in_turns(data_dir: Path, tmp_path: Path) -> None:
    result = speed(data_dir, make_tiny_model(tmp_path / "model"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    figure = json.loads((tmp_path / "out/figures/speed-colours.json").read_text())
    assert set(figure["values"]) == {"seta", "lora", "peft"}
    assert all(found["seconds"] > 0 and found["peak_gib"] > 0 for found in figure["values"].values())


def test_a_variant_that_cannot_start_is_said(data_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(make_tiny_model(tmp_path / "model"), broken)
    (broken / "config.json").write_text("{}")
    result = speed(data_dir, broken, tmp_path / "out")
    assert result.exit_code == 1 and "variant seta ended with code 1" in result.stderr
    assert not (tmp_path / "out").exists()
