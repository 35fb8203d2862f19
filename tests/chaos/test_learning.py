"""`seta learn` killed at every single moment, and in two processes: it always ends with the same bank."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bank import Bank, expert_sites
from tests.adapters.learning import QUICK, TEST, TRAIN, Tasks
from tests.tiny import make_tiny_model

ROOT = Path(__file__).parents[2]
THREE_STEPS = QUICK.model_copy(update={"steps": 3, "targets": ("v_proj",)})
ELASTIC = {"gate": "softmax", "sharing": "elastic", "share_at_least": 1, "keep_at_least": 0}
OPTIONS = ["--steps", "4", "--batch-size", "5", "--trunk-layers", "1", "--block-size", "32", "--rank", "4"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1790000000", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def python(arguments: list[object]) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, *map(str, arguments)], os.environ | ENVIRONMENT
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=7200)
    assert run.returncode == 0, run.stderr[-3000:]
    return run


@pytest.mark.parametrize("changes", [{}, ELASTIC], ids=["analytic gate", "softmax gate, shared experts"])
def test_killed_at_every_moment(changes: dict[str, Any], model: str, tmp_path: Path) -> None:
    settings = THREE_STEPS.model_copy(update=changes).model_dump_json(exclude_none=True)
    said = python(["-m", "tests.chaos.dying", tmp_path, model, settings]).stdout
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    print(f"{len(found)} moments, {sum(one['deaths'] for one in found)} deaths, {os.cpu_count()} cores")
    assert len(found) == found[0]["of"] > 100 and all(one["deaths"] >= 1 for one in found)
    assert [one for one in found if one["differing"]] == []


def write(path: Path, tasks: Tasks) -> Path:
    path.write_text("".join(e.model_dump_json(exclude_none=True) + "\n" for found in tasks.values() for e in found))
    return path


def test_two_processes_learn_what_one_learns(model: str, tmp_path: Path) -> None:
    """Within rounding: the same blocks, and the same sub-blocks' deltas; one of them writes and speaks."""
    one, two = tmp_path / "one", tmp_path / "two"
    files = ["--task", write(tmp_path / "train.jsonl", TRAIN), "--test", write(tmp_path / "test.jsonl", TEST)]
    command = ["-m", "adapters.cli", "learn", "--model", model, *files, *OPTIONS, "--dtype", "float32"]
    python([*command, "--bank", one])
    said = python([*ACCELERATE, *command, "--bank", two])
    assert said.stdout.count("accuracy matrix") == 1 and said.stderr.count("generation 1: colours") == 1
    banks = [Bank.open(path) for path in (one, two)]
    assert banks[1].verify() == [] and banks[1].generations() == [0, 1, 2]
    assert not (two / ".learning").exists()
    for task in ("colours", "sums"):
        alone, together = ([*expert_sites(bank.load_expert(bank.manifest(), f"{task}.unique"))] for bank in banks)
        assert [(s.layer, s.target) for s in alone] == [(s.layer, s.target) for s in together]
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a.blocks, b.blocks)
            products = [torch.bmm(s.b.float(), s.a.float()) for s in (a, b)]
            assert float((products[0] - products[1]).norm() / products[0].norm()) < 0.02
    first, second = (bank.load_gate(bank.manifest()) for bank in banks)
    torch.testing.assert_close(first, second)
