"""The LoRA methods' training loop against one written out with transformers and PEFT alone."""

import math
import random
from pathlib import Path

import pytest
import torch

from adapters.benchmark.learner import open_learner
from adapters.benchmark.lora import LoraModel
from adapters.benchmark.lora_methods import PerTaskLora
from adapters.benchmark.lora_training import Hooks, train
from adapters.benchmark.settings import LoraSettings
from adapters.benchmark.tasks import TaskData
from adapters.examples import Prepared
from tests.adapters.benchmark.factory import make_cell
from tests.adapters.benchmark.test_lora import lora_matrices, reference

STEPS = 6
SETTINGS = LoraSettings(dtype="float32", seed=5, batch_size=3, learning_rate=0.01)


def plain_training(model: torch.nn.Module, data: Prepared) -> float:
    """Batches without replacement, linear warm-up over ten steps, cosine to a tenth, clipping at 1, AdamW."""
    weights = list(lora_matrices(model).values())
    optimiser = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0)
    rng, order, losses = random.Random(SETTINGS.seed), [], []  # type: ignore[var-annotated]
    for step in range(STEPS):
        if len(order) < 3:
            order = rng.sample(range(len(data)), len(data))
        batch, order = order[:3], order[3:]
        decay = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        optimiser.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 10) * decay
        optimiser.zero_grad()
        count = sum(len(data.tokens[i].answer) for i in batch)
        losses.append(0.0)
        for i in batch:
            prompt, answer = data.tokens[i].prompt, data.tokens[i].answer
            labels = torch.tensor([[-100] * len(prompt) + answer])
            loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss * len(answer) / count
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    return losses[-1]


def test_training_is_what_it_says(tiny_model: Path, tasks: list[TaskData]) -> None:
    ours = LoraModel(tiny_model, SETTINGS)
    data = ours.render(tasks[1].train, 1024, "test")
    plain = reference(tiny_model, ours)
    start = {name: weight.detach().clone() for name, weight in ours.weights.items()}
    after_steps: list[torch.Tensor] = []

    class Watch(Hooks):
        def after_step(self) -> None:
            name, working = next(iter(self.model.working.items()))
            assert torch.equal(working, self.model.weights[name]), "the next batch runs with the weights just stepped"
            after_steps.append(working.detach().clone())

    loss = train(ours, data, SETTINGS, STEPS, Watch(ours))
    assert loss == pytest.approx(plain_training(plain, data), rel=1e-3)
    assert len(after_steps) == STEPS
    for name, expected in lora_matrices(plain).items():
        moved, wanted = ours.weights[name] - start[name], expected - start[name]
        assert float((moved - wanted).norm()) <= 0.02 * float(wanted.norm()) + 1e-6, name


def test_every_task_of_per_task_starts_afresh(tiny_model: Path, tasks: list[TaskData], tmp_path: Path) -> None:
    """The second task's LoRA is the one it would have as the only task."""

    def learned(some: list[TaskData]) -> LoraModel:
        learner = open_learner(make_cell("per-task", some, tiny_model), some, tiny_model, tmp_path)
        assert isinstance(learner, PerTaskLora)
        for group in range(len(some)):
            learner.learn(group)
        return learner.model

    alone, second = learned(tasks[1:2]), learned(tasks[:2])
    for name, weight in alone.weights.items():
        assert torch.equal(weight, second.weights[name])
