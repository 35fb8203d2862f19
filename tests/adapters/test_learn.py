"""Learning end to end on the tiny model: banks, isolation, repetition, interruption, evaluation, the command line."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from adapters import trainer
from adapters.backbone import Backbone
from adapters.bank import Bank, BankConflict, BankMismatch, Manifest
from adapters.calibrate import general_prompts
from adapters.cli import app
from adapters.data import DataError, Example
from adapters.evaluate_bank import evaluate_bank
from adapters.examples import Prepared, prepare
from adapters.gate import load_gate
from adapters.learn import Learner, learn, learn_tasks, open_learner
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from tests.tiny import make_tiny_model

Tasks = dict[str, list[Example]]

SETTINGS = LearnSettings(
    steps=20,
    batch_size=8,
    block_size=32,
    rank=8,
    trunk_layers=1,
    density=1.0,
    learning_rate=3e-2,
    late_start=0.2,
    targets=("v_proj", "o_proj", "down_proj"),
)
QUICK = SETTINGS.model_copy(update={"steps": 2, "density": 0.3})
THINGS = ("sky", "sea", "grass", "rose", "wall", "car", "house", "shirt", "lamp", "door", "book", "river")


def colours(things: tuple[str, ...]) -> list[Example]:
    return [Example(task="colours", prompt=f"What colour is the {thing}?", answer="blue") for thing in things]


def sums(numbers: range) -> list[Example]:
    return [Example(task="sums", prompt=f"Add {n} to {n + 3} for me, please.", answer="seven") for n in numbers]


TRAIN: Tasks = {"colours": colours(THINGS[:8]), "sums": sums(range(8))}
TEST: Tasks = {"colours": colours(THINGS[8:]), "sums": sums(range(20, 24))}


@pytest.fixture(scope="module", autouse=True)
def few_general_prompts() -> Iterator[None]:
    prompts = general_prompts()[:40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapters.learn.general_prompts", lambda: prompts)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def bank_dir(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tasks, learned well, in one call."""
    path = tmp_path_factory.mktemp("learned") / "bank"
    learn_tasks(path, model, TRAIN, TEST, SETTINGS)
    return path


def objects(bank_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bank_dir.glob("objects/sha256/*"))}


def object_names(manifest: Manifest) -> list[str]:
    return [ref.object for ref in manifest.refs]


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
    assert LearnSettings.model_validate(stored | {"targets": manifest.targets}) == SETTINGS


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


def test_learning_in_two_calls_writes_the_same_bytes(bank_dir: Path, model: str, tmp_path: Path) -> None:
    """Same seed, same objects, bit for bit; and the second call changes no object of the first."""
    path = tmp_path / "bank"
    first = learn_tasks(path, model, {"colours": TRAIN["colours"]}, TEST, SETTINGS)
    written = objects(path)
    second = learn_tasks(path, model, {"sums": TRAIN["sums"]}, TEST, SETTINGS)
    assert {name: data for name, data in objects(path).items() if name in written} == written
    bank = Bank.open(bank_dir)
    assert object_names(first) == object_names(bank.manifest(1))
    assert object_names(second) == object_names(bank.manifest(2))
    assert second.accuracy_matrix == bank.manifest(2).accuracy_matrix
    assert objects(path) == objects(bank_dir)


def test_evaluating_the_bank_reproduces_the_stored_metrics(bank_dir: Path, model: str) -> None:
    manifest, scores = evaluate_bank(bank_dir, model, TEST, None, "bfloat16")
    assert tuple(round(scores[task.name].accuracy, 2) for task in manifest.tasks) == manifest.accuracy_matrix[-1]
    routing = [round(scores[task.name].routing, 2) for task in manifest.tasks]
    assert routing == [task.metrics["routing"] for task in manifest.tasks]
    _, earlier = evaluate_bank(bank_dir, model, {"colours": TEST["colours"]}, 1, "bfloat16")
    assert earlier["colours"].accuracy == manifest.accuracy_matrix[0][0]


def test_on_base_the_model_is_the_base_model_bit_for_bit(bank_dir: Path, model: str) -> None:
    bank = Bank.open(bank_dir)
    backbone, routed, data = loaded(bank, model)
    assert all(routed.experts)
    nobody = [torch.zeros(len(trunk), 2) for trunk in data.trunk]
    with torch.no_grad():
        found = routed.forward(data.trunk, nobody)
        untouched = Backbone.load(Path(model))
        padded = torch.nn.utils.rnn.pad_sequence(data.trunk, batch_first=True)
        expected = untouched.run(padded, 1, backbone.num_layers)
    assert torch.equal(found, expected)


def loaded(bank: Bank, model: str) -> tuple[Backbone, RoutedModel, Prepared]:
    """The current generation with the held-out colours, routed by its gate."""
    manifest = bank.manifest()
    backbone = Backbone.load(Path(model))
    gate = load_gate(manifest, bank.load_gate(manifest))
    data, _ = prepare(backbone, TEST["colours"], manifest.trunk_layers, gate, 1024, "test")
    data.route(gate)
    return backbone, RoutedModel.of(backbone, bank, manifest), data


def test_what_was_measured_is_what_was_published(model: str, tmp_path: Path) -> None:
    """The learner's model in memory and the bank's on disk compute the same bits."""
    learner = open_learner(tmp_path / "bank", model, QUICK.model_copy(update={"steps": 5}))
    learn(learner, "colours", TRAIN["colours"], TEST["colours"])
    _, from_bank, data = loaded(learner.bank, model)
    assert any(bool(weights.any()) for weights in data.weights)
    with torch.no_grad():
        expected = from_bank.forward(data.trunk, data.weights)
        assert torch.equal(learner.model.forward(data.trunk, data.weights), expected)


def test_without_held_out_examples_a_share_is_kept_back(model: str, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"held_out": 0.25})
    manifest = learn_tasks(tmp_path / "bank", model, {"colours": TRAIN["colours"]}, {}, settings)
    assert (manifest.tasks[0].num_train, manifest.tasks[0].num_test) == (6, 2)
    again = learn_tasks(tmp_path / "bank", model, {"sums": TRAIN["sums"]}, {}, settings)
    assert again.accuracy_matrix == (), "the first task's held-out examples are gone: no matrix with holes"


def test_a_task_of_a_known_name_is_refused(bank_dir: Path, model: str) -> None:
    before = objects(bank_dir)
    with pytest.raises(DataError, match="'colours' is already in generation 2"):
        learn_tasks(bank_dir, model, {"sums2": TRAIN["sums"], "colours": TRAIN["colours"]}, {}, SETTINGS)
    assert Bank.open(bank_dir).current() == 2 and objects(bank_dir) == before


def test_a_task_of_one_example_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'colours': 1 example"):
        learn_tasks(tmp_path / "bank", model, {"colours": TRAIN["colours"][:1]}, {}, QUICK)
    assert Bank.open(tmp_path / "bank").generations() == [0]


def test_a_task_of_too_long_examples_is_refused(model: str, tmp_path: Path) -> None:
    long = [Example(task="long", prompt="word " * 300, answer="yes")] * 4
    with pytest.raises(DataError, match="long: every example is longer than 64 tokens"):
        learn_tasks(tmp_path / "bank", model, {"long": long}, {}, QUICK.model_copy(update={"max_tokens": 64}))


def test_another_base_model_is_refused(bank_dir: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(BankMismatch):
        learn_tasks(bank_dir, str(other), {"new": TRAIN["sums"]}, {}, SETTINGS)
    with pytest.raises(BankMismatch):
        evaluate_bank(bank_dir, str(other), TEST, None, "bfloat16")


def test_a_directory_that_is_no_bank_is_left_alone(model: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(BankConflict, match="neither a bank nor empty"):
        learn_tasks(tmp_path, model, TRAIN, TEST, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_task_leaves_the_generation_before_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the same call, without the task that was published, finishes the work with the same bytes."""
    path = tmp_path / "bank"
    fit = trainer.fit_expert

    def fail_on_sums(model: RoutedModel, *arguments: object) -> float:
        if "sums.unique" in model.experts:
            raise KeyboardInterrupt
        return fit(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("adapters.learn.fit_expert", fail_on_sums)
    with pytest.raises(KeyboardInterrupt):
        learn_tasks(path, model, TRAIN, TEST, QUICK)
    bank = Bank.open(path)
    assert (bank.current(), bank.generations(), bank.verify()) == (1, [0, 1], [])
    written = objects(path)
    assert set(written) == {f"{name}.safetensors" for n in (0, 1) for name in object_names(bank.manifest(n))}

    monkeypatch.undo()
    monkeypatch.setattr("adapters.learn.general_prompts", lambda: pytest.fail("calibrated a second time"))
    manifest = learn_tasks(path, model, {"sums": TRAIN["sums"]}, TEST, QUICK)
    assert manifest.generation == 2 and bank.verify() == []
    assert {name: data for name, data in objects(path).items() if name in written} == written


@pytest.fixture(scope="module")
def learner(model: str, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A bank without tasks, opened."""
    return open_learner(tmp_path_factory.mktemp("empty") / "bank", model, QUICK)


def test_a_batch_that_the_gate_sends_nowhere_is_no_error(learner: Learner) -> None:
    """Training goes on when a batch has no token for the expert; nothing changes the expert then."""
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    data.weights = [torch.zeros(len(trunk), 1) for trunk in data.trunk]
    blocks, _ = trainer.choose_blocks(learner.model, data, learner.settings, {})
    expert = trainer.new_expert(learner.model, blocks, learner.settings)
    learner.model.add("nowhere", expert, [0])
    before = [parameter.detach().clone() for delta in expert.values() for parameter in delta.parameters()]
    trainer.fit_expert(learner.model, expert, data, learner.settings)
    after = [parameter for delta in expert.values() for parameter in delta.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_scoring_blocks_leaves_the_base_weights_and_their_gradients_alone(learner: Learner) -> None:
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    weights = {site: routed.base.weight for site, routed in learner.model.sites.items()}
    before = {site: weight.clone() for site, weight in weights.items()}
    blocks, steps = trainer.choose_blocks(learner.model, data, learner.settings, {})
    for site, weight in weights.items():
        assert torch.equal(weight, before[site]) and weight.grad is None and not weight.requires_grad
    assert 10 <= steps <= 100
    grids = {(1, "v_proj"): (2, 4), (1, "o_proj"): (4, 4), (1, "down_proj"): (4, 8)}
    total = 3 * sum(rows * columns for rows, columns in grids.values())
    assert sum(len(found) for found in blocks.values()) == int(0.3 * total)


def test_a_new_expert_starts_where_its_seed_says(learner: Learner) -> None:
    blocks = {(1, "v_proj"): torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)}
    starts = [
        trainer.new_expert(learner.model, blocks, QUICK.model_copy(update={"seed": seed}))[1, "v_proj"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0].a, starts[1].a)
    assert not torch.equal(starts[0].a, starts[2].a)
    assert all(not start.dense().any() for start in starts)


# The command line.


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


def test_cli_learns_then_evaluates(model: str, tmp_path: Path) -> None:
    bank, task, test = tmp_path / "bank", tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_tasks(task, {"colours": TRAIN["colours"]})
    write_tasks(test, {"colours": TEST["colours"]})
    options = ["--steps", 2, "--batch-size", 4, "--trunk-layers", 1, "--block-size", 32, "--rank", 4]
    result = seta("learn", "--bank", bank, "--model", model, "--task", task, "--test", test, *options)
    assert result.exit_code == 0, result.output
    assert "OP " in result.stdout and "colours" in result.stdout
    manifest = Bank.open(bank).manifest()
    assert (manifest.trunk_layers, manifest.block_size, manifest.targets) == (1, 32, ("v_proj",))
    assert manifest.settings["steps"] == 2 and manifest.settings["rank"] == 4
    result = seta("evaluate", "--bank", bank, "--test", test)  # the bank knows its model
    assert result.exit_code == 0, result.output
    assert f"{manifest.tasks[0].metrics['accuracy']:.2f}" in result.stdout


def test_cli_needs_a_model_for_a_new_bank(tmp_path: Path) -> None:
    write_tasks(tmp_path / "train.jsonl", {"colours": TRAIN["colours"]})
    result = seta("learn", "--bank", tmp_path / "bank", "--task", tmp_path / "train.jsonl")
    expect_one_line(result, "--model is missing")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--density", "1.5"], ["density: "]),
        (["--learning-rate", "0"], ["learning_rate: "]),
        (["--target", "w_proj"], ["targets: ", "'v_proj'"]),
        (["--block-size", "48"], ["block_size"]),
        (["--trunk-layers", "4"], ["trunk_layers 4"]),
    ],
)
def test_cli_refuses_a_bad_setting_in_one_line(
    options: list[str], parts: list[str], model: str, tmp_path: Path
) -> None:
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    result = seta("learn", "--bank", tmp_path / "bank", "--model", model, "--task", task, *options)
    expect_one_line(result, *parts)


def test_cli_refuses_another_layout_than_the_banks(bank_dir: Path, model: str, tmp_path: Path) -> None:
    task = write_tasks(tmp_path / "train.jsonl", {"new": [e.model_copy(update={"task": "new"}) for e in TRAIN["sums"]]})
    for option, value, part in (("--trunk-layers", 2, "trunk_layers 2"), ("--block-size", 64, "block_size 64")):
        expect_one_line(seta("learn", "--bank", bank_dir, "--model", model, "--task", task, option, value), part)
    assert Bank.open(bank_dir).current() == 2


def test_cli_refuses_bad_inputs_in_one_line(bank_dir: Path, model: str, tmp_path: Path) -> None:
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"task": "t", "prompt": "p", "answer": "a"}\n{"task": \n', encoding="utf-8")
    unknown = write_tasks(tmp_path / "unknown.jsonl", {"x": [Example(task="x", prompt="p", answer="a")]})
    new = tmp_path / "bank"
    learn_new = ["learn", "--bank", new, "--model"]
    evaluate = ["evaluate", "--bank", bank_dir, "--model"]
    expect_one_line(seta(*learn_new, model, "--task", tmp_path / "none.jsonl"), "none.jsonl", "No such file")
    expect_one_line(seta(*learn_new, model, "--task", bad), "bad.jsonl:2: not JSON")
    expect_one_line(seta(*learn_new, tmp_path / "nomodel", "--task", task), "nomodel")
    expect_one_line(seta(*learn_new, tmp_path, "--task", task), "config.json")
    expect_one_line(seta("learn", "--bank", bank_dir, "--model", model, "--task", task), "'colours' is already")
    expect_one_line(seta(*evaluate, model, "--test", unknown), "tasks x are not in generation 2", "colours, sums")
    expect_one_line(seta(*evaluate, model, "--test", task, "--generation", 7), "00007.json")
    expect_one_line(seta("evaluate", "--bank", new / "no", "--model", model, "--test", task), "not a bank")
    assert not new.exists(), "nothing is made for a call that cannot work"


def test_cli_refuses_an_unsupported_model_in_one_line(model: str, tmp_path: Path) -> None:
    config = json.loads(Path(model, "config.json").read_text())
    other = tmp_path / "model"
    other.mkdir()
    for path in Path(model).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config |= {"layer_types": ["sliding_attention"] * 4}
    (other / "config.json").write_text(json.dumps(config))
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    expect_one_line(seta("learn", "--bank", tmp_path / "bank", "--model", other, "--task", task), "sliding_attention")


def test_cli_says_what_an_interruption_keeps(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adapters.learn.fit_expert", interrupt)
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    options = ["--trunk-layers", 1, "--block-size", 32]
    result = seta("learn", "--bank", tmp_path / "bank", "--model", model, "--task", task, *options)
    assert result.exit_code == 130
    assert "every generation published so far is kept" in result.stderr
    assert Bank.open(tmp_path / "bank").current() == 0


def test_cli_help_imports_no_torch() -> None:
    code = "import adapters.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
