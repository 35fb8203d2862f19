"""The LoRA under the compared methods, against plain reference computations."""

import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.benchmark.lora import MICRO_BATCH, LoraModel, pieces
from adapters.benchmark.settings import ALL_LINEARS, LoraSettings
from adapters.benchmark.tasks import TaskData
from adapters.data import DataError, Tokens
from adapters.examples import Prepared

SETTINGS = LoraSettings(dtype="float32", seed=3)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoraModel:
    return LoraModel(tiny_model, SETTINGS)


@pytest.fixture(scope="module")
def data(model: LoraModel, tasks: list[TaskData]) -> Prepared:
    return model.render([example for task in tasks for example in task.train], 1024, "test")


@pytest.fixture
def trained(model: LoraModel) -> LoraModel:
    """With a B that is not zero, so that every matrix has a gradient."""
    model.reset(SETTINGS.seed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.weights.items():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    model.use(model.weights)
    return model


def reference(tiny_model: Path, lora: LoraModel) -> torch.nn.Module:
    """transformers and PEFT as their own documentation uses them, with the same LoRA weights."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(ALL_LINEARS), task_type="CAUSAL_LM")
    found = get_peft_model(base, config)
    with torch.no_grad():
        for name, matrix in lora_matrices(found).items():
            matrix.copy_(lora.weights[name])
    return found


def lora_matrices(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """By the names that LoraModel gives them."""
    named = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters() if p.requires_grad}
    return {name.replace(".default.", ".trained."): p for name, p in named.items()}


def test_loss_and_gradients_are_those_of_transformers_and_peft(
    tiny_model: Path, trained: LoraModel, data: Prepared
) -> None:
    """One batch in pieces, padded on the right, logits for the answers only; against one example at a time."""
    batch = list(range(0, 24, 2))
    assert len({len(data.tokens[i].ids) for i in batch}) > 2 and len(batch) > MICRO_BATCH
    for weight in trained.weights.values():
        weight.grad = None
    found = trained.add_gradients(data, batch)

    plain = reference(tiny_model, trained)
    count = sum(len(data.tokens[i].answer) for i in batch)
    total = 0.0
    for i in batch:
        prompt, answer = data.tokens[i].prompt, data.tokens[i].answer
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = plain(input_ids=torch.tensor([prompt + answer]), labels=labels).loss * len(answer) / count
        loss.backward()
        total += float(loss)
    assert found == pytest.approx(total, rel=1e-4)
    named = lora_matrices(plain)
    assert set(named) == set(trained.weights)
    for name, weight in trained.weights.items():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, named[name].grad, rtol=1e-3, atol=1e-6)


def test_gradients_add_up_and_scale(trained: LoraModel, data: Prepared) -> None:
    def gradient(*calls: tuple[list[int], float]) -> torch.Tensor:
        for weight in trained.weights.values():
            weight.grad = None
        for batch, scale in calls:
            trained.add_gradients(data, batch, scale)
        return torch.cat([w.grad.flatten() for w in trained.weights.values() if w.grad is not None])

    once = gradient(([0, 1], 1.0))
    torch.testing.assert_close(gradient(([0, 1], 0.5), ([0, 1], 0.5)), once, rtol=1e-4, atol=1e-7)


def test_a_right_answer_is_what_greedy_decoding_gives(tiny_model: Path, trained: LoraModel, data: Prepared) -> None:
    """Exact match in one pass against decoding token after token, on answers made right or wrong on purpose."""
    plain = reference(tiny_model, trained).eval()
    rng = random.Random(0)
    tokens, expected = [], 0
    for found in data.tokens[:8]:
        ids = list(found.prompt)
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        answer = ids[len(found.prompt) :]
        if rng.random() < 0.5:
            answer[-1] += 1 if answer[-1] == 0 else -1
        else:
            expected += 1
        tokens.append(Tokens(found.prompt, answer, ""))
    assert 0 < expected < 8
    assert trained.accuracy(Prepared(tokens, [], [], []), "test") == 100 * expected / 8


def test_the_base_model_is_left_alone(tiny_model: Path, model: LoraModel, data: Prepared) -> None:
    """B = 0 is the base model, and no base weight collects a gradient."""
    model.reset(0)
    model.add_gradients(data, [0])
    untouched = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    _, found, _ = model.answer_logits(data, [0])
    prompt, answer = data.tokens[0].prompt, data.tokens[0].answer
    logits = untouched(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
    base = [p for name, p in model.backbone.model.named_parameters() if ".lora_" not in name]
    assert all(p.grad is None and not p.requires_grad for p in base)


def test_reset_is_its_seed_s(model: LoraModel) -> None:
    def start(seed: int) -> torch.Tensor:
        model.reset(seed)
        return torch.cat([weight.detach().flatten() for weight in model.weights.values()])

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    for name, working in model.working.items():
        assert torch.equal(working, model.weights[name])
        assert (".lora_B." in name) == (not working.any())


def test_pieces_hold_similar_lengths() -> None:
    tokens = [Tokens([0] * n, [1], "") for n in (30, 5, 20, 4, 31, 6, 21, 7, 22, 8)]
    found = pieces(tokens, range(10))
    assert [len(tokens[i].prompt) for piece in found for i in piece] == [4, 5, 6, 7, 8, 20, 21, 22, 30, 31]
    assert [len(piece) for piece in found] == [MICRO_BATCH, MICRO_BATCH, 2]


def test_nothing_short_enough_is_an_error(model: LoraModel, tasks: list[TaskData]) -> None:
    with pytest.raises(DataError, match="a task: every example is longer than 16 tokens"):
        model.render(tasks[0].train, 16, "a task")
