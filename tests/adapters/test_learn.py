"""Learning end to end on the tiny model: banks, isolation, repetition, interruption, evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.backbone import Backbone
from adapters.bank import Bank, BankConflict, BankMismatch
from adapters.data import DataError, Example
from adapters.evaluate_bank import evaluate_bank
from adapters.examples import Prepared, prepare
from adapters.fit import Fitting
from adapters.gate import load_gate
from adapters.learn import learn, learn_tasks
from adapters.learner import open_learner
from adapters.routed import RoutedModel
from adapters.score_history import ScoreHistory
from adapters.settings import LearnSettings
from tests.adapters.learning import QUICK, SETTINGS, TEST, TRAIN, object_names, objects
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("few_general_prompts")


def test_each_task_becomes_a_generation_of_a_whole_bank(bank_dir: Path) -> None:
    bank = Bank.open(bank_dir)
    assert bank.verify() == []
    assert bank.generations() == [0, 1, 2] and bank.current() == 2
    manifest = bank.manifest()
    assert [task.name for task in manifest.tasks] == ["colours", "sums"]
    assert [(task.num_train, task.num_test) for task in manifest.tasks] == [(8, 4), (8, 4)]
    assert [expert.id for expert in manifest.experts] == ["colours.unique", "sums.unique"]
    assert manifest.membership == ((1, 0), (0, 1))
    stored = {name: value for name, value in manifest.settings.items() if name != "model"}
    assert LearnSettings.model_validate(stored | {"targets": manifest.targets}) == SETTINGS.model_copy(
        update={"top_k": 1}
    )


def test_what_was_learned_is_answered(bank_dir: Path) -> None:
    """Held-out prompts of a trivial task: from nothing right without the expert to all right with it."""
    matrix = Bank.open(bank_dir).manifest().accuracy_matrix
    assert [len(row) for row in matrix] == [1, 2]
    assert matrix[0][0] == 100.0
    assert matrix[1][1] >= 50.0


def test_a_later_task_leaves_the_earlier_expert_as_it_was(bank_dir: Path) -> None:
    bank = Bank.open(bank_dir)
    first, second = bank.manifest(1), bank.manifest(2)
    assert second.experts[0] == first.experts[0]
    old, new = bank.load_gate(first), bank.load_gate(second)
    assert torch.equal(new["mean"][:1], old["mean"]) and torch.equal(new["count"][:1], old["count"])
    for name in ("projection", "content_weight", "content_bias", "base_mean", "base_whitener"):
        assert torch.equal(new[name], old[name])


def test_the_bank_carries_the_scores_of_the_tasks_learned(bank_dir: Path) -> None:
    bank = Bank.open(bank_dir)
    assert bank.load_scores(bank.manifest(0)) is None
    histories = [ScoreHistory.of(bank.manifest(n), bank.load_scores(bank.manifest(n))) for n in (1, 2)]
    assert [history.count for history in histories] == [1, 2]
    first, both = (history.mean for history in histories)
    assert first is not None and both is not None
    assert all(not torch.equal(first[site], both[site]) for site in first)


def test_learning_in_two_calls_writes_the_same_bytes(bank_dir: Path, tiny_model: str, tmp_path: Path) -> None:
    """Same seed, same objects, bit for bit; and the second call changes no object of the first."""
    path = tmp_path / "bank"
    first = learn_tasks(path, tiny_model, {"colours": TRAIN["colours"]}, TEST, SETTINGS)
    written = objects(path)
    second = learn_tasks(path, tiny_model, {"sums": TRAIN["sums"]}, TEST, SETTINGS)
    assert {name: data for name, data in objects(path).items() if name in written} == written
    bank = Bank.open(bank_dir)
    assert object_names(first) == object_names(bank.manifest(1))
    assert object_names(second) == object_names(bank.manifest(2))
    assert second.accuracy_matrix == bank.manifest(2).accuracy_matrix
    assert objects(path) == objects(bank_dir)


def test_evaluating_the_bank_reproduces_the_stored_metrics(bank_dir: Path, tiny_model: str) -> None:
    manifest, scores = evaluate_bank(bank_dir, tiny_model, TEST, None, "bfloat16")
    assert tuple(round(scores[task.name].accuracy, 2) for task in manifest.tasks) == manifest.accuracy_matrix[-1]
    routing = [round(scores[task.name].routing, 2) for task in manifest.tasks]
    assert routing == [task.metrics["routing"] for task in manifest.tasks]
    _, earlier = evaluate_bank(bank_dir, tiny_model, {"colours": TEST["colours"]}, 1, "bfloat16")
    assert earlier["colours"].accuracy == manifest.accuracy_matrix[0][0]


def test_on_base_the_model_is_the_base_model_bit_for_bit(bank_dir: Path, tiny_model: str) -> None:
    bank = Bank.open(bank_dir)
    backbone, routed, data = loaded(bank, tiny_model)
    assert all(routed.experts)
    nobody = [torch.zeros(len(trunk), 2) for trunk in data.trunk]
    with torch.no_grad():
        found = routed.forward(data.trunk, nobody)
        untouched = Backbone.load(Path(tiny_model))
        padded = torch.nn.utils.rnn.pad_sequence(data.trunk, batch_first=True)
        expected = untouched.run(padded, 1, backbone.num_layers)
    assert torch.equal(found, expected)


def loaded(bank: Bank, tiny_model: str) -> tuple[Backbone, RoutedModel, Prepared]:
    """The current generation with the held-out colours, routed by its gate."""
    manifest = bank.manifest()
    backbone = Backbone.load(Path(tiny_model))
    gate = load_gate(manifest, bank.load_gate(manifest))
    data, _ = prepare(backbone, TEST["colours"], manifest.trunk_layers, gate, 1024, "test")
    data.route(gate)
    return backbone, RoutedModel.of(backbone, bank, manifest), data


def test_what_was_measured_is_what_was_published(tiny_model: str, tmp_path: Path) -> None:
    """The learner's model in memory and the bank's on disk compute the same bits."""
    learner = open_learner(tmp_path / "bank", tiny_model, QUICK.model_copy(update={"steps": 5}))
    learn(learner, "colours", TRAIN["colours"], TEST["colours"])
    _, from_bank, data = loaded(learner.bank, tiny_model)
    assert any(bool(weights.any()) for weights in data.weights)
    with torch.no_grad():
        expected = from_bank.forward(data.trunk, data.weights)
        assert torch.equal(learner.model.forward(data.trunk, data.weights), expected)


def test_without_held_out_examples_a_share_is_kept_back(tiny_model: str, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"held_out": 0.25})
    manifest = learn_tasks(tmp_path / "bank", tiny_model, {"colours": TRAIN["colours"]}, {}, settings)
    assert (manifest.tasks[0].num_train, manifest.tasks[0].num_test) == (6, 2)
    again = learn_tasks(tmp_path / "bank", tiny_model, {"sums": TRAIN["sums"]}, {}, settings)
    assert again.accuracy_matrix == (), "the first task's held-out examples are gone: no matrix with holes"


def test_a_task_of_a_known_name_is_refused(bank_dir: Path, tiny_model: str) -> None:
    before = objects(bank_dir)
    with pytest.raises(DataError, match="'colours' is already in generation 2"):
        learn_tasks(bank_dir, tiny_model, {"sums2": TRAIN["sums"], "colours": TRAIN["colours"]}, {}, SETTINGS)
    assert Bank.open(bank_dir).current() == 2 and objects(bank_dir) == before


def test_a_task_of_one_example_is_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'colours': 1 example"):
        learn_tasks(tmp_path / "bank", tiny_model, {"colours": TRAIN["colours"][:1]}, {}, QUICK)
    assert Bank.open(tmp_path / "bank").generations() == [0]


def test_a_task_of_too_long_examples_is_refused(tiny_model: str, tmp_path: Path) -> None:
    long = [Example(task="long", prompt="word " * 300, answer="yes")] * 4
    with pytest.raises(DataError, match="long: every example is longer than 64 tokens"):
        learn_tasks(tmp_path / "bank", tiny_model, {"long": long}, {}, QUICK.model_copy(update={"max_tokens": 64}))


def test_another_base_model_is_refused(bank_dir: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(BankMismatch):
        learn_tasks(bank_dir, str(other), {"new": TRAIN["sums"]}, {}, SETTINGS)
    with pytest.raises(BankMismatch):
        evaluate_bank(bank_dir, str(other), TEST, None, "bfloat16")


def test_a_directory_that_is_no_bank_is_left_alone(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(BankConflict, match="neither a bank nor empty"):
        learn_tasks(tmp_path, tiny_model, TRAIN, TEST, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_task_leaves_the_generation_before_it(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the same call finishes the work; the task that was published is not learned again."""
    path = tmp_path / "bank"
    run = Fitting.run

    def fail_on_sums(fitting: Fitting, *arguments: Any) -> float:
        if "sums.unique" in fitting.model.experts:
            raise KeyboardInterrupt
        return run(fitting, *arguments)

    monkeypatch.setattr(Fitting, "run", fail_on_sums)
    with pytest.raises(KeyboardInterrupt):
        learn_tasks(path, tiny_model, TRAIN, TEST, QUICK)
    bank = Bank.open(path)
    assert (bank.current(), bank.generations(), bank.verify()) == (1, [0, 1], [])
    written = objects(path)
    assert set(written) == {f"{name}.safetensors" for n in (0, 1) for name in object_names(bank.manifest(n))}

    monkeypatch.undo()
    monkeypatch.setattr("adapters.learner.general_prompts", lambda: pytest.fail("calibrated a second time"))
    manifest = learn_tasks(path, tiny_model, TRAIN, TEST, QUICK)
    assert manifest.generation == 2 and bank.verify() == []
    assert {name: data for name, data in objects(path).items() if name in written} == written
    assert not (path / ".learning").exists()
