"""Learning that is killed at any moment goes on with the same call and ends with the same bank, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters import learn as learn_module
from adapters.bank import Bank, BankConflict
from adapters.checkpoint import CheckpointError, read_checkpoint
from adapters.data import DataError
from adapters.fit import Fitting
from adapters.learn import learn_tasks
from adapters.settings import RunSettings
from tests.adapters.learning import QUICK, TEST, TRAIN, objects

ROOT = Path(__file__).parents[2]
SETTINGS = QUICK.model_copy(update={"steps": 3, "targets": ("v_proj",)})
EACH_STEP = RunSettings(checkpoint_seconds=0)

pytestmark = pytest.mark.usefixtures("few_general_prompts")


def kill_at_moments(root: Path, model: str, count: int, **changes: object) -> list[dict[str, Any]]:
    settings = SETTINGS.model_copy(update=changes).model_dump_json(exclude_none=True)
    command = [sys.executable, "-m", "tests.adapters.dying", str(root), model, settings, str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads do not survive a fork
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tiny_model: str, tmp_path: Path) -> None:
    """Some moments of some hundred; `tests/chaos` tries them all."""
    found = kill_at_moments(tmp_path, tiny_model, count=5)
    assert len(found) == 5 and all(one["deaths"] >= 1 for one in found)
    assert [one for one in found if one["differing"]] == []


@pytest.fixture
def stopped(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank whose second task was interrupted after two steps of three."""
    path = tmp_path / "bank"
    advance = Fitting.advance

    def stop(fitting: Fitting) -> int:
        if "sums.unique" in fitting.model.experts and fitting.step == 2:
            raise KeyboardInterrupt
        return advance(fitting)

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            learn_tasks(path, tiny_model, TRAIN, TEST, SETTINGS, EACH_STEP)
    checkpoint = read_checkpoint(Bank.open(path))
    assert checkpoint is not None and (checkpoint.info.task, checkpoint.info.step) == ("sums", 2)
    return path


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    taken: list[int] = []
    advance = Fitting.advance

    def count(fitting: Fitting) -> int:
        taken.append(fitting.step)
        return advance(fitting)

    monkeypatch.setattr(Fitting, "advance", count)
    return taken


def test_only_what_is_left_is_done(stopped: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same call once more does nothing."""
    monkeypatch.setattr("adapters.learner.general_prompts", lambda: pytest.fail("calibrated again"))
    monkeypatch.setattr("adapters.learn.score_blocks", lambda *_: pytest.fail("scored again"))
    taken = steps_taken(monkeypatch)
    manifest = learn_tasks(stopped, tiny_model, TRAIN, TEST, SETTINGS, EACH_STEP)
    assert taken == [2] and manifest.generation == 2
    assert [len(row) for row in manifest.accuracy_matrix] == [1, 2]
    assert not (stopped / ".learning").exists()
    before = objects(stopped)
    assert learn_tasks(stopped, tiny_model, TRAIN, TEST, SETTINGS, EACH_STEP) == manifest
    assert taken == [2] and objects(stopped) == before and Bank.open(stopped).generations() == [0, 1, 2]


def test_generations_that_are_not_made_current_are_found_too(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CURRENT stays at 0 all along; the second task builds on the first one's generation."""
    run, path = EACH_STEP.model_copy(update={"make_current": False}), tmp_path / "bank"
    score, scored = learn_module.score_task, []

    def stop_at_the_third(*arguments: Any) -> Any:
        scored.append(arguments[-1])
        if len(scored) == 3:  # colours; colours and sums, after the second task
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(learn_module, "score_task", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        learn_tasks(path, tiny_model, TRAIN, TEST, SETTINGS, run)
    assert Bank.open(path).generations() == [0, 1]
    taken = steps_taken(monkeypatch)
    manifest = learn_tasks(path, tiny_model, TRAIN, TEST, SETTINGS, run)
    assert taken == [] and (manifest.generation, manifest.parent, Bank.open(path).current()) == (2, 1, 0)
    assert [len(row) for row in manifest.accuracy_matrix] == [1, 2]


def test_another_command_is_refused_and_says_what_differs(stopped: Path, tiny_model: str) -> None:
    def refused(tasks: Any, settings: Any = SETTINGS) -> str:
        with pytest.raises((CheckpointError, DataError)) as error:
            learn_tasks(stopped, tiny_model, tasks, {"sums": TEST["sums"]}, settings, EACH_STEP)
        return str(error.value)

    sums = {"sums": TRAIN["sums"]}
    message = refused(sums, SETTINGS.model_copy(update={"steps": 9}))
    assert message == (
        "learning task 'sums' was interrupted after 2 steps, and steps was 3, now 9; "
        "give the same command again to go on with it, or --fresh to drop it"
    )
    assert "its examples are others now" in refused({"sums": TRAIN["sums"][1:]})
    shouts = [example.model_copy(update={"task": "shouts"}) for example in TRAIN["sums"]]
    assert "task 'shouts' was asked for" in refused({"shouts": shouts})
    other = [example.model_copy(update={"answer": "red"}) for example in TRAIN["colours"]]
    assert "'colours' is already in generation 1, learned from other examples" in refused({"colours": other})
    bank = Bank.open(stopped)
    bank.set_current(0)
    assert "the bank has another generation since" in refused(sums)


def test_fresh_drops_what_was_left(stopped: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.model_copy(update={"steps": 4})
    taken = steps_taken(monkeypatch)
    fresh = EACH_STEP.model_copy(update={"fresh": True})
    manifest = learn_tasks(stopped, tiny_model, {"sums": TRAIN["sums"]}, TEST, settings, fresh)
    assert taken == [0, 1, 2, 3] and manifest.settings["steps"] == 4


def test_a_damaged_checkpoint_is_an_error_until_it_is_dropped(stopped: Path, tiny_model: str) -> None:
    (stopped / ".learning/checkpoint.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="damaged.*--fresh"):
        learn_tasks(stopped, tiny_model, TRAIN, TEST, SETTINGS, EACH_STEP)
    fresh = EACH_STEP.model_copy(update={"fresh": True})
    assert learn_tasks(stopped, tiny_model, TRAIN, TEST, SETTINGS, fresh).generation == 2


def test_one_learner_at_a_time(stopped: Path, tiny_model: str) -> None:
    with Bank.open(stopped).learning(), pytest.raises(BankConflict, match="another process is learning"):
        learn_tasks(stopped, tiny_model, TRAIN, TEST, SETTINGS, EACH_STEP)
    assert read_checkpoint(Bank.open(stopped)) is not None


def test_bad_data_of_a_later_task_is_refused_before_the_first_is_learned(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = steps_taken(monkeypatch)
    long = [example.model_copy(update={"prompt": "word " * 300}) for example in TRAIN["sums"]]
    ends = [example.model_copy(update={"answer": "a<|im_end|>b"}) for example in TRAIN["sums"]]
    settings = SETTINGS.model_copy(update={"max_tokens": 64})
    for later, reason in ((long, "every example is longer"), (ends, "end-of-turn"), (long[:1], "1 example")):
        tests = {} if len(later) == 1 else TEST
        with pytest.raises(DataError, match=reason):
            learn_tasks(tmp_path / "bank", tiny_model, {"colours": TRAIN["colours"], "sums": later}, tests, settings)
    assert taken == [] and Bank.open(tmp_path / "bank").generations() == [0]
