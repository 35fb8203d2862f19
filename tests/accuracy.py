"""Accuracy over HTTP against the trainer's own evaluation of the same examples."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.bank import Bank
from adapters.data import read_tasks
from adapters.evaluate_bank import evaluate_bank
from loadtest.accuracy import measure
from loadtest.workload import read_rows

MAX_POINTS_APART = 1.0
BFLOAT16_ANSWERS = 3
"""Answers of a task that may flip between two bfloat16 runs: the sums' order follows the batch's composition."""


def check_served_as_trained(url: str, model: str, model_dir: Path, bank: Path, tests: Sequence[Path]) -> None:
    """Every prompt of the files, no task id anywhere: within a point of what the trainer measures.

    Each task may differ by a few answers more, the mean over the tasks may not.
    """
    manifest, scores = evaluate_bank(bank, str(model_dir), read_tasks(*tests), None, "bfloat16")
    recorder = asyncio.run(measure(url, model, read_rows(list(tests)), concurrency=16))
    assert not recorder.errors
    assert set(recorder.generations) == {str(Bank.open(bank).current())} == {str(manifest.generation)}
    served = {task: tally.accuracy for task, tally in recorder.tasks.items()}
    print({task: f"served {served[task]:.2f}, trained {score.accuracy:.2f}" for task, score in scores.items()})
    assert set(served) == set(scores)
    means = (sum(served.values()) / len(served), sum(score.accuracy for score in scores.values()) / len(scores))
    assert means[0] == pytest.approx(means[1], abs=MAX_POINTS_APART)
    for task, score in scores.items():
        flips = 100 * BFLOAT16_ANSWERS / score.num_test
        assert served[task] == pytest.approx(score.accuracy, abs=MAX_POINTS_APART + flips)
