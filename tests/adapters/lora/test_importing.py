"""A LoRA that PEFT made becomes a task of a bank: the same logits where it acts, a gate that knows its prompts."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from adapters.bank import Bank, BankConflict
from adapters.bank.cli import app
from adapters.data import render_chat
from adapters.generate import Always, generate
from adapters.learner import open_learner
from adapters.lora.importing import Imported, import_lora
from adapters.routed import RoutedModel
from tests.adapters.lora.imports import ANSWER_TOKENS, NEW, PROMPTS, copy_of, loaded, write_prompts

from .factory import load_base, load_peft

pytestmark = pytest.mark.usefixtures("few_general_prompts")


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
