"""A LoRA that PEFT made becomes a task of a bank: the same logits where it acts, a gate that knows its prompts."""

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from adapters.backbone import Backbone
from adapters.bank import Bank, BankConflict, Manifest, expert_sites
from adapters.bank.cli import app
from adapters.base_model import fingerprint
from adapters.data import DataError, Example, render_chat
from adapters.examples import Prepared
from adapters.gate import load_gate
from adapters.generate import Always, generate
from adapters.learn import learn_tasks
from adapters.learner import open_learner
from adapters.lora.adapting import adapt, divergence
from adapters.lora.config import LoraError
from adapters.lora.importing import Imported, ImportSettings, import_lora
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from tests.adapters.learning import QUICK

from .factory import load_base, load_peft, lora_tensors, train_like_peft, write_lora

PROMPTS = [f"Add {n} to {n + 3} for me, please." for n in range(12)]
ANSWER_TOKENS = 4
NEW = ImportSettings(dtype="float32", answer_tokens=ANSWER_TOKENS, adapt_steps=0)


pytestmark = pytest.mark.usefixtures("few_general_prompts")


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Path:
    return Path(tiny_model)


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_like_peft(model, tmp_path_factory.mktemp("lora") / "sums")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])


@pytest.fixture(scope="module")
def old_bank(model: Path, few_general_prompts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that has learned a task of its own: v_proj above layer 1, blocks of 32."""
    path = tmp_path_factory.mktemp("learned") / "bank"
    things = ("sky", "sea", "grass", "rose", "wall", "car", "house", "shirt")
    tasks = {
        "colours": [Example(task="colours", prompt=f"What colour is the {thing}?", answer="blue") for thing in things]
    }
    settings = LearnSettings(steps=2, batch_size=4, block_size=32, rank=4, trunk_layers=1, dtype="float32")
    learn_tasks(path, str(model), tasks, {}, settings)
    return path


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(bank_dir: Path, model: Path) -> tuple[RoutedModel, Any, Manifest]:
    bank = Bank.open(bank_dir)
    manifest = bank.manifest()
    routed = RoutedModel.of(Backbone.load(model, "float32"), bank, manifest)
    return routed, load_gate(manifest, bank.load_gate(manifest)), manifest


def copy_of(bank_dir: Path, target: Path) -> Path:
    for path in bank_dir.rglob("*"):
        if path.is_file():
            (target / path.relative_to(bank_dir)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(bank_dir)).write_bytes(path.read_bytes())
    return target


@pytest.fixture(scope="module")
def imported(
    old_bank: Path, model: Path, lora: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Imported]:
    bank_dir = copy_of(old_bank, tmp_path_factory.mktemp("imported"))
    return bank_dir, import_lora(bank_dir, str(model), lora, "sums", prompts, NEW)


@torch.no_grad()
def test_where_the_expert_acts_the_logits_are_the_adapters(
    imported: tuple[Path, Imported], model: Path, lora: Path
) -> None:
    routed, _, _ = loaded(imported[0], model)
    peft_model = load_peft(model, lora)
    base_model = load_base(model)
    for prompt in PROMPTS[:3]:
        ids = render_chat(routed.backbone.tokenizer, [{"role": "user", "content": prompt}])
        with_adapter = peft_model(torch.tensor([ids])).logits[0]
        routed.route(Always(1, 2).decide(torch.zeros(1, len(ids), 1)))
        hidden = routed.backbone.run(routed.backbone.embed(torch.tensor([ids])), 0, 4)
        torch.testing.assert_close(routed.backbone.logits(hidden)[0], with_adapter, atol=2e-3, rtol=1e-3)
        assert not torch.allclose(with_adapter, base_model(torch.tensor([ids])).logits[0], atol=0.1)


def test_the_same_greedy_tokens_as_the_adapter_alone(imported: tuple[Path, Imported], model: Path, lora: Path) -> None:
    routed, _, _ = loaded(imported[0], model)
    peft_model = load_peft(model, lora)
    for prompt in PROMPTS[:4]:
        ids = render_chat(routed.backbone.tokenizer, [{"role": "user", "content": prompt}])
        expected = peft_model.generate(input_ids=torch.tensor([ids]), max_new_tokens=ANSWER_TOKENS, do_sample=False)[
            0, len(ids) :
        ]
        assert generate(routed, Always(1, 2), ids, ANSWER_TOKENS).tokens == expected.tolist()


def test_the_bank_is_whole_and_knows_one_task_more(imported: tuple[Path, Imported], old_bank: Path) -> None:
    bank_dir, done = imported
    bank, manifest = Bank.open(bank_dir), done.manifest
    assert bank.verify() == [] and bank.manifest() == manifest
    assert [task.name for task in manifest.tasks] == ["colours", "sums"] and manifest.membership == ((1, 0), (0, 1))
    assert manifest.experts[0] == Bank.open(old_bank).manifest().experts[0]
    expert = manifest.experts[1]
    assert (expert.id, expert.kind, expert.rank, expert.num_blocks) == ("sums.unique", "unique", 4, 3 * 2 * 4)
    assert manifest.tasks[1].num_train == 10 and manifest.tasks[1].num_test == done.score.num_test == 2
    assert manifest.tasks[1].metrics == {
        "same_answers_as_lora": done.score.accuracy,
        "routing": done.score.routing,
    }
    assert manifest.settings["model"] and manifest.settings["steps"] == 2, "the settings of the learned tasks stay"


def test_its_prompts_are_routed_to_it_and_others_are_not(imported: tuple[Path, Imported], model: Path) -> None:
    routed, gate, _ = loaded(imported[0], model)
    assert imported[1].score.routing == 100.0
    for prompt, expected in ((PROMPTS[5], [0.0, 1.0]), ("What colour is the lamp?", [1.0, 0.0])):
        ids = render_chat(routed.backbone.tokenizer, [{"role": "user", "content": prompt}])
        weights = gate.decide(generate(routed, gate, ids, 1).pooled)
        assert weights[len(ids) - 1].tolist() == expected


def test_the_number_of_same_answers_is_counted_against_the_adapter(
    imported: tuple[Path, Imported], model: Path, prompts: Path
) -> None:
    """By decoding each held-out prompt twice: with the gate and always on."""
    routed, gate, _ = loaded(imported[0], model)
    same = 0
    held = [PROMPTS[i] for i in held_out_indices()]
    for prompt in held:
        ids = render_chat(routed.backbone.tokenizer, [{"role": "user", "content": prompt}])
        same += (
            generate(routed, gate, ids, ANSWER_TOKENS).tokens
            == generate(routed, Always(1, 2), ids, ANSWER_TOKENS).tokens
        )
    assert imported[1].score.accuracy == pytest.approx(100 * same / len(held))


def held_out_indices() -> list[int]:
    order = list(range(len(PROMPTS)))
    random.Random(0).shuffle(order)
    return order[:2]


def test_a_new_bank_is_made_to_fit(model: Path, lora: Path, prompts: Path, tmp_path: Path) -> None:
    done = import_lora(tmp_path / "bank", str(model), lora, "sums", prompts, NEW)
    manifest = Bank.open(tmp_path / "bank").manifest()
    assert manifest == done.manifest and manifest.generation == 1
    assert (manifest.trunk_layers, manifest.block_size, manifest.targets) == (1, 64, ("v_proj",))
    assert Bank.open(tmp_path / "bank").verify() == []


def test_answers_that_are_given_are_taken(model: Path, lora: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Only the held-out prompts are answered by the adapter then."""
    asked: list[list[int]] = []

    def spy(model: RoutedModel, gate: Any, ids: list[int], max_tokens: int) -> Any:
        asked.append(ids)
        return generate(model, gate, ids, max_tokens)

    monkeypatch.setattr("adapters.lora.importing.generate", spy)
    rows = [{"task": "sums", "prompt": p, "answer": "seven"} for p in PROMPTS]
    path = write_prompts(tmp_path / "p.jsonl", rows)
    done = import_lora(tmp_path / "bank", str(model), lora, "sums", path, NEW)
    assert len(asked) == done.manifest.tasks[0].num_test == 2


def test_nobody_learns_into_the_bank_meanwhile(
    old_bank: Path, model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the import would build on a generation that is not the bank's any more, and leave out what was learned."""
    path = copy_of(old_bank, tmp_path / "bank")
    with Bank.open(path).learning(), pytest.raises(BankConflict, match="another process is learning"):
        import_lora(path, str(model), lora, "sums", prompts, NEW)

    def open_and_move(*arguments: Any) -> Any:
        learner = open_learner(*arguments)
        learner.bank.set_current(0)
        return learner

    monkeypatch.setattr("adapters.lora.importing.open_learner", open_and_move)
    with pytest.raises(BankConflict, match="another generation since the import began; run it again"):
        import_lora(path, str(model), lora, "sums", prompts, NEW)
    assert Bank.open(path).generations() == [0, 1]


def test_adapting_brings_the_expert_nearer_to_the_adapter(
    model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its predictions under the gate; what was measured is published, and the adapter's own weights otherwise."""
    seen: list[float] = []

    def divergence_of(learner_model: RoutedModel, data: Any, wanted: Any) -> float:
        with torch.no_grad():
            return float(divergence(learner_model, data, wanted, list(range(len(data))), random.Random(0)))

    def with_start(learner_model: RoutedModel, expert_id: str, data: Any, wanted: Any, *rest: int) -> float:
        start = divergence_of(learner_model, data, wanted)
        adapt(learner_model, expert_id, data, wanted, *rest)
        end = divergence_of(learner_model, data, wanted)
        assert end < 0.75 * start
        seen.extend([start, end])
        return end

    monkeypatch.setattr("adapters.lora.importing.adapt", with_start)
    settings = dataclasses.replace(NEW, adapt_steps=30)
    done = import_lora(tmp_path / "bank", str(model), lora, "sums", prompts, settings)
    assert len(seen) == 2
    assert done.score.accuracy >= done.exact.accuracy
    bank = Bank.open(tmp_path / "bank")
    manifest = bank.manifest()
    assert bank.verify() == [] and manifest.tasks[0].metrics["same_answers_as_lora"] == done.score.accuracy
    (a, *_) = (site.a for site in expert_sites(bank.load_expert(manifest, "sums.unique")))
    assert a.dtype == (torch.float32 if done.score == done.exact else torch.bfloat16)


def test_the_divergence_is_over_the_routed_tokens_alone(imported: tuple[Path, Imported], model: Path) -> None:
    """Against the plain formula; None where no token is routed."""
    routed, _, _ = loaded(imported[0], model)
    trunk, wanted = torch.randn(2, 5, routed.backbone.model.config.hidden_size).unbind()
    weights = torch.zeros(5, 2)
    data = Prepared([], [trunk], [], [weights])
    assert divergence(routed, data, [wanted], [0], random.Random(0)) is None
    weights[3:, 1] = 1
    with torch.no_grad():
        found = divergence(routed, data, [wanted], [0], random.Random(0))
        p = routed.backbone.logits(wanted[3:]).softmax(-1)
        q = routed.backbone.logits(routed.forward([trunk], [weights])[0, 3:]).softmax(-1)
    assert float(found) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3)


def test_without_adapting_or_if_it_is_no_better_the_expert_is_the_adapter(
    model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_lora(tmp_path / "exact", str(model), lora, "sums", prompts, NEW)

    def ruin(model: RoutedModel, expert_id: str, *_: object) -> float:
        for delta in model.experts[expert_id].values():
            delta.b.data.fill_(3.0)
        model.freeze(expert_id)
        return 0.0

    monkeypatch.setattr("adapters.lora.importing.adapt", ruin)
    settings = dataclasses.replace(NEW, adapt_steps=1)
    done = import_lora(tmp_path / "ruined", str(model), lora, "sums", prompts, settings)
    assert done.score == done.exact
    one, other = (Bank.open(tmp_path / name).manifest().experts[0] for name in ("exact", "ruined"))
    assert one == other


# What is refused, before anything is written.


def refused(bank: Path, model: Path, lora: Path, prompts: Path, settings: ImportSettings = NEW) -> str:
    before = sorted(bank.rglob("*"))
    with pytest.raises((LoraError, DataError)) as error:
        import_lora(bank, str(model), lora, "sums", prompts, settings)
    assert sorted(bank.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def some_lora(model: Path, path: Path, sites: list[tuple[int, str]], rank: int = 2) -> Path:
    return write_lora(path, lora_tensors(fingerprint(model), sites, rank), r=rank)


def test_layers_below_the_trunk_and_other_targets_are_refused(
    old_bank: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    low = some_lora(model, tmp_path / "low", [(layer, "v_proj") for layer in range(4)])
    message = refused(old_bank, model, low, prompts)
    assert "changes v_proj of layers 0 to 3" in message and "v_proj of layers 1 to 3" in message
    assert "layers 0 would be lost" in message and "layers_to_transform=1..3" in message
    assert "layer 0 belongs to the trunk of every bank" in refused(tmp_path / "new", model, low, prompts)
    wide = some_lora(model, tmp_path / "wide", [(2, "v_proj"), (3, "o_proj")])
    message = refused(old_bank, model, wide, prompts)
    assert "so o_proj would be lost; import it into a new bank with --trunk-layers 2 or less" in message
    done = import_lora(
        tmp_path / "fits", str(model), wide, "sums", prompts, ImportSettings(answer_tokens=2, adapt_steps=0)
    )
    assert done.manifest.targets == ("v_proj", "o_proj") and done.manifest.trunk_layers == 1
    deep = ImportSettings(trunk_layers=3)
    assert "layers 2 and v_proj" not in (message := refused(tmp_path / "new", model, wide, prompts, deep))
    assert "the new bank's experts are on v_proj, o_proj of layers 3 to 3, so layers 2 would be lost" in message


def test_blocks_that_do_not_fit_are_refused(
    model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ImportSettings(block_size=48)
    assert "block_size 48 does not divide v_proj's (64, 128)" in refused(tmp_path / "b", model, lora, prompts, odd)
    monkeypatch.setattr("adapters.lora.importing.MAX_OBJECT_BYTES", 1000)
    assert "larger --block-size" in refused(tmp_path / "b", model, lora, prompts)


def test_a_known_task_bad_prompts_and_another_layout_are_refused(
    imported: tuple[Path, Imported], old_bank: Path, model: Path, lora: Path, tmp_path: Path
) -> None:
    good = write_prompts(tmp_path / "good.jsonl", [{"prompt": p} for p in PROMPTS])
    assert "task 'sums' is already in generation 2" in refused(imported[0], model, lora, good)
    few = write_prompts(tmp_path / "few.jsonl", [{"prompt": p} for p in PROMPTS[:3]])
    assert "3 prompts found, at least 4" in refused(old_bank, model, lora, few)
    strange = write_prompts(tmp_path / "strange.jsonl", [{"prompt": "a"}, {"task": "others", "prompt": "b"}])
    assert re.search(r"strange.jsonl:2: task 'others' found", refused(old_bank, model, lora, strange))
    long = write_prompts(tmp_path / "long.jsonl", [{"prompt": "word " * 300}] * 5 + [{"prompt": "a"}])
    message = refused(old_bank, model, lora, long, ImportSettings(max_tokens=128))
    assert "1 prompts of at most 64 tokens found" in message
    message = refused(old_bank, model, lora, good, ImportSettings(block_size=64))
    assert "block_size 64 found, this bank was made with 32" in message


def test_a_bank_whose_gate_learns_with_its_experts_is_refused(
    model: Path, lora: Path, prompts: Path, tmp_path: Path
) -> None:
    open_learner(tmp_path / "bank", str(model), QUICK.model_copy(update={"gate": "softmax"}))
    assert "this bank's gate is softmax" in refused(tmp_path / "bank", model, lora, prompts)


# The command line.


def seta_bank(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_cli(model: Path, lora: Path, prompts: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    command = ["import-lora", bank, lora, "--task", "sums", "--examples", prompts, "--answer-tokens", 4]
    command += ["--adapt-steps", 2]
    missing = seta_bank(*command)
    assert missing.exit_code == 1 and missing.stderr.startswith("seta: --model is missing")
    done = seta_bank(*command, "--model", model, "--block-size", 32)
    assert done.exit_code == 0, done.output
    assert "generation 1: 24 sub-blocks of rank 4" in done.stdout
    assert "of 2 prompts held back" in done.stdout and "% get the greedy answer that the LoRA alone" in done.stdout
    again = seta_bank(*command)  # the bank knows its model
    assert again.exit_code == 1
    assert again.stderr.splitlines()[-1] == ("seta: task 'sums' is already in generation 1; choose another --task")
    (lora_less := tmp_path / "none").mkdir()
    failed = seta_bank("import-lora", bank, lora_less, "--task", "x", "--examples", prompts)
    assert failed.exit_code == 1 and failed.stderr.startswith("seta: ") and failed.stderr.count("\n") == 1
