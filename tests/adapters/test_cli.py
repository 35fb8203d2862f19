"""The command line of the training side: what it does, and one line for whatever the user can mend."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.bank import Bank
from adapters.cli import app
from adapters.data import Example
from tests.adapters.learning import TEST, TRAIN

pytestmark = pytest.mark.usefixtures("few_general_prompts")


def write_tasks(path: Path, tasks: Mapping[str, list[Example]]) -> Path:
    rows = [json.loads(example.model_dump_json(exclude_none=True)) for found in tasks.values() for example in found]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def seta(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def expect_one_line(result: Result, *parts: str) -> None:
    """Exit code 1, no traceback, and one line on stderr that begins with the program's name."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("seta: ")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0]


def test_cli_learns_then_evaluates(tiny_model: str, tmp_path: Path) -> None:
    bank, task, test = tmp_path / "bank", tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_tasks(task, {"colours": TRAIN["colours"]})
    write_tasks(test, {"colours": TEST["colours"]})
    options = ["--steps", 2, "--batch-size", 4, "--trunk-layers", 1, "--block-size", 32, "--rank", 4]
    result = seta("learn", "--bank", bank, "--model", tiny_model, "--task", task, "--test", test, *options)
    assert result.exit_code == 0, result.output
    assert "OP " in result.stdout and "colours" in result.stdout
    manifest = Bank.open(bank).manifest()
    assert (manifest.trunk_layers, manifest.block_size, manifest.targets) == (1, 32, ("down_proj",))
    assert manifest.settings["steps"] == 2 and manifest.settings["rank"] == 4
    result = seta("evaluate", "--bank", bank, "--test", test)  # the bank knows its model
    assert result.exit_code == 0, result.output
    assert f"{manifest.tasks[0].metrics['accuracy']:.2f}" in result.stdout


def test_cli_takes_a_preset_and_single_settings(tiny_model: str, tmp_path: Path) -> None:
    """The paper's, with both tasks in one file; what is given comes before it."""
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    options = ["--preset", "paper", "--steps", 1, "--batch-size", 2, "--rank", 2, "--trunk-layers", 3]
    options += ["--sharing", "frozen", "--set", "share_at_least=1", "--set", "adaptive_budget=no"]
    result = seta("learn", "--bank", tmp_path / "bank", "--model", tiny_model, "--task", task, *options)
    assert result.exit_code == 0, result.output
    manifest = Bank.open(tmp_path / "bank").manifest()
    assert manifest.gate.kind == "softmax" and manifest.block_size == 32
    stored = {name: manifest.settings[name] for name in ("preset", "sharing", "share_at_least", "adaptive_budget")}
    assert stored == {"preset": "paper", "sharing": "frozen", "share_at_least": 1, "adaptive_budget": False}
    assert manifest.settings["divergence"] is True and manifest.settings["top_k"] == 4


def test_cli_needs_a_model_for_a_new_bank(tmp_path: Path) -> None:
    write_tasks(tmp_path / "train.jsonl", {"colours": TRAIN["colours"]})
    result = seta("learn", "--bank", tmp_path / "bank", "--task", tmp_path / "train.jsonl")
    expect_one_line(result, "--model is missing")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--density", "1.5"], ["density: "]),
        (["--set", "anchor_strength=-1"], ["anchor_strength: "]),
        (["--set", "nothing=1"], ["nothing: "]),
        (["--set", "divergence"], ["--set divergence found; expected NAME=VALUE"]),
        (["--learning-rate", "0"], ["learning_rate: "]),
        (["--target", "w_proj"], ["targets: ", "'v_proj'"]),
        (["--block-size", "48"], ["block_size"]),
        (["--trunk-layers", "4"], ["trunk_layers 4"]),
    ],
)
def test_cli_refuses_a_bad_setting_in_one_line(
    options: list[str], parts: list[str], tiny_model: str, tmp_path: Path
) -> None:
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    result = seta("learn", "--bank", tmp_path / "bank", "--model", tiny_model, "--task", task, *options)
    expect_one_line(result, *parts)
    assert not (tmp_path / "bank").exists(), "nothing is made for a call that cannot work"


def test_cli_refuses_another_layout_than_the_banks(bank_dir: Path, tiny_model: str, tmp_path: Path) -> None:
    task = write_tasks(tmp_path / "train.jsonl", {"new": [e.model_copy(update={"task": "new"}) for e in TRAIN["sums"]]})
    for option, value, part in (
        ("--trunk-layers", 2, "trunk_layers 2"),
        ("--block-size", 64, "block_size 64"),
        ("--gate", "softmax", "gate softmax found, this bank was made with analytic"),
        ("--preset", "paper", "targets ('v_proj',) found, this bank was made with"),
    ):
        expect_one_line(seta("learn", "--bank", bank_dir, "--model", tiny_model, "--task", task, option, value), part)
    assert Bank.open(bank_dir).current() == 2


def test_cli_refuses_bad_inputs_in_one_line(bank_dir: Path, tiny_model: str, tmp_path: Path) -> None:
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"task": "t", "prompt": "p", "answer": "a"}\n{"task": \n', encoding="utf-8")
    unknown = write_tasks(tmp_path / "unknown.jsonl", {"x": [Example(task="x", prompt="p", answer="a")]})
    new = tmp_path / "bank"
    learn_new = ["learn", "--bank", new, "--model"]
    evaluate = ["evaluate", "--bank", bank_dir, "--model"]
    expect_one_line(seta(*learn_new, tiny_model, "--task", tmp_path / "none.jsonl"), "none.jsonl", "No such file")
    expect_one_line(seta(*learn_new, tiny_model, "--task", bad), "bad.jsonl:2: not JSON")
    expect_one_line(seta(*learn_new, tmp_path / "nomodel", "--task", task), "nomodel")
    expect_one_line(seta(*learn_new, tmp_path, "--task", task), "config.json")
    expect_one_line(seta("learn", "--bank", bank_dir, "--model", tiny_model, "--task", task), "'colours' is already")
    expect_one_line(seta(*evaluate, tiny_model, "--test", unknown), "tasks x are not in generation 2", "colours, sums")
    expect_one_line(seta(*evaluate, tiny_model, "--test", task, "--generation", 7), "00007.json")
    expect_one_line(seta("evaluate", "--bank", new / "no", "--model", tiny_model, "--test", task), "not a bank")
    assert not new.exists(), "nothing is made for a call that cannot work"


def test_cli_refuses_an_unsupported_model_in_one_line(tiny_model: str, tmp_path: Path) -> None:
    config = json.loads(Path(tiny_model, "config.json").read_text())
    other = tmp_path / "model"
    other.mkdir()
    for path in Path(tiny_model).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config |= {"layer_types": ["sliding_attention"] * 4}
    (other / "config.json").write_text(json.dumps(config))
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    expect_one_line(seta("learn", "--bank", tmp_path / "bank", "--model", other, "--task", task), "sliding_attention")


def test_cli_says_what_an_interruption_keeps(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adapters.learn.Fitting.run", interrupt)
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    options = ["--trunk-layers", 1, "--block-size", 32]
    result = seta("learn", "--bank", tmp_path / "bank", "--model", tiny_model, "--task", task, *options)
    assert result.exit_code == 130
    assert "what was learned so far (the same command goes on with it) is kept" in result.stderr
    assert Bank.open(tmp_path / "bank").current() == 0


def test_cli_help_imports_no_torch() -> None:
    code = "import adapters.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
