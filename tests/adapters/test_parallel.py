"""Two CPU processes learn what one learns; what accelerate silently does not do is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters.bank import Bank, expert_sites
from adapters.parallel import ALONE, ParallelError, Processes
from tests.adapters.learning import TEST, TRAIN, Tasks

ROOT = Path(__file__).parents[2]
OPTIONS = ["--steps", "4", "--batch-size", "5", "--trunk-layers", "1", "--block-size", "32", "--rank", "4"]


def test_parts_are_all_items_each_once() -> None:
    items = list(range(7))
    parts = [Processes(index, 3).part(items) for index in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert ALONE.part(items) == items and ALONE.is_main
    assert Processes(2, 3).part([1, 2]) == []


def test_alone_nothing_is_added_up_or_waited_for() -> None:
    tensors = [torch.ones(2), torch.zeros(3, dtype=torch.bfloat16)]
    ALONE.add_up(tensors)
    ALONE.wait()
    assert tensors[0].tolist() == [1, 1]
    assert Processes.join({}) == ALONE
    assert Processes.join({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE


def test_what_accelerate_makes_one_process_of_is_refused() -> None:
    """`accelerate launch --cpu --num_processes 2` says nothing and starts one."""
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    with pytest.raises(ParallelError, match="starts one process.*--multi_gpu --num_processes N"):
        Processes.join(environment)
    assert Processes.join({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}) == ALONE


def write(path: Path, tasks: Tasks) -> Path:
    path.write_text("".join(e.model_dump_json(exclude_none=True) + "\n" for found in tasks.values() for e in found))
    return path


def learn(launcher: list[str], bank: Path, model: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    files = ["--task", write(tmp_path / "train.jsonl", TRAIN), "--test", write(tmp_path / "test.jsonl", TEST)]
    command = [*launcher, "-m", "adapters.cli", "learn", "--bank", bank, "--model", model, *files, *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1790000000", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*map(str, command), "--dtype", "float32"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run


def test_two_processes_learn_what_one_learns(tiny_model: str, tmp_path: Path) -> None:
    """Within rounding: the same blocks, and the same sub-blocks' deltas; one of them writes and speaks."""
    one, two = tmp_path / "one", tmp_path / "two"
    learn([sys.executable], one, tiny_model, tmp_path)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    said = learn([*accelerate, "--main_process_port", "0"], two, tiny_model, tmp_path)
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
