"""Learning that was killed goes on with the same call and ends with the same bank, bit for bit.

Here at the moments that are hardest to get right, by an exception that no handler catches;
`tests/chaos/test_learning.py` kills processes at every moment.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.bank import Bank, BankConflict
from adapters.bank.files import Disk
from adapters.checkpoint import CheckpointError, read_checkpoint
from adapters.data import DataError
from adapters.fit import Fitting
from adapters.learn import learn_tasks
from adapters.settings import RunSettings
from tests.adapters.bank.faults import Killed
from tests.adapters.learning import QUICK, TEST, TRAIN

SETTINGS = QUICK.model_copy(update={"steps": 3, "targets": ("v_proj",)})
EACH_STEP = RunSettings(checkpoint_seconds=0)
FRESH = RunSettings(checkpoint_seconds=0, fresh=True)

pytestmark = pytest.mark.usefixtures("few_general_prompts", "one_time")


@pytest.fixture(scope="module")
def one_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1790000000")
        yield


def learn(bank: Path, model: str, run: RunSettings = EACH_STEP) -> Any:
    return learn_tasks(bank, model, TRAIN, TEST, SETTINGS, run)


@contextmanager
def killed(owner: type, name: str, when: Callable[..., bool]) -> Iterator[None]:
    """The process dies before the call of a method of which `when` is true; a write is cut in half."""
    original = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        if when(*arguments):
            if name == "write":
                os.write(arguments[1], arguments[2][: len(arguments[2]) // 2])
            raise Killed
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, call)
        yield


def nth(number: int) -> Callable[..., bool]:
    """True of the `number`-th call, counted from 0."""
    seen: list[None] = []

    def when(*_: Any) -> bool:
        seen.append(None)
        return len(seen) == number + 1

    return when


def contents(bank: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bank)): path.read_bytes() for path in sorted(bank.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(few_general_prompts: None, one_time: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tasks, learned in one go. Tests leave it as it is."""
    path = tmp_path_factory.mktemp("whole") / "bank"
    learn(path, tiny_model)
    return path


@pytest.fixture(scope="module")
def left(few_general_prompts: None, one_time: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed twice: while the first task's third checkpoint was written, and after two steps of three of the second."""
    path = tmp_path_factory.mktemp("left") / "bank"
    checkpoints = nth(2)
    with killed(Disk, "rename", lambda _, source, target: "checkpoint" in target.name and checkpoints()):
        learn(path, tiny_model)
    with killed(Fitting, "advance", lambda fitting: "sums.unique" in fitting.model.experts and fitting.step == 2):
        learn(path, tiny_model)
    return path


@pytest.fixture
def stopped(left: Path, tmp_path: Path) -> Path:
    """A copy of what was left, to go on from."""
    return shutil.copytree(left, tmp_path / "bank")


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    taken: list[int] = []
    advance = Fitting.advance

    def count(fitting: Fitting) -> int:
        taken.append(fitting.step)
        return advance(fitting)

    monkeypatch.setattr(Fitting, "advance", count)
    return taken


def test_only_what_is_left_is_done_and_every_byte_is_the_same(
    stopped: Path, whole: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again while it publishes, and while it removes the checkpoint; in the end the same call does nothing."""
    monkeypatch.setattr("adapters.learner.general_prompts", lambda: pytest.fail("calibrated again"))
    monkeypatch.setattr("adapters.learn.score_blocks", lambda *_: pytest.fail("scored again"))
    taken = steps_taken(monkeypatch)
    with killed(Disk, "rename", lambda _, source, target: target.name == "CURRENT"):
        learn(stopped, tiny_model)
    assert taken == [2] and (Bank.open(stopped).current(), Bank.open(stopped).generations()) == (1, [0, 1, 2])
    with killed(Disk, "unlink", lambda _, path: path.name.startswith("checkpoint")):
        learn(stopped, tiny_model)
    assert Bank.open(stopped).current() == 2 and read_checkpoint(Bank.open(stopped)) is not None
    for _ in range(2):
        assert learn(stopped, tiny_model) == Bank.open(whole).manifest()
        assert contents(stopped) == contents(whole)
    assert taken == [2]


def test_neither_a_write_cut_in_half_nor_the_hour_changes_anything(
    stopped: Path, whole: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`created` is when the task was first begun."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790009999")
    with killed(Disk, "write", nth(1)):
        learn(stopped, tiny_model)
    learn(stopped, tiny_model)
    assert contents(stopped) == contents(whole)


def test_generations_that_are_not_made_current_are_found_too(
    stopped: Path, whole: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CURRENT stays at 0 all along; the second task builds on the first one's generation."""
    Bank.open(stopped).set_current(0)
    taken = steps_taken(monkeypatch)
    manifest = learn(stopped, tiny_model, EACH_STEP.model_copy(update={"make_current": False}))
    assert taken == [2] and manifest == Bank.open(whole).manifest() and Bank.open(stopped).current() == 0
    learn(stopped, tiny_model)
    assert taken == [2] and contents(stopped) == contents(whole)


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


def test_fresh_drops_what_was_left_damaged_or_not(
    stopped: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stopped / ".learning/checkpoint.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="damaged.*--fresh"):
        learn(stopped, tiny_model)
    taken = steps_taken(monkeypatch)
    settings = SETTINGS.model_copy(update={"steps": 1})
    manifest = learn_tasks(stopped, tiny_model, {"sums": TRAIN["sums"]}, TEST, settings, FRESH)
    assert taken == [0] and manifest.settings["steps"] == 1


def test_one_learner_at_a_time(stopped: Path, tiny_model: str) -> None:
    with Bank.open(stopped).learning(), pytest.raises(BankConflict, match="another process is learning"):
        learn(stopped, tiny_model)
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
