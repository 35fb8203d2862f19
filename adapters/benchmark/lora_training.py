"""The training loop of all LoRA methods, and what a method may add to it."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from adapters.batches import Batches
from adapters.benchmark.lora import LoraModel
from adapters.benchmark.settings import LoraSettings
from adapters.examples import Prepared
from adapters.fit import CLIP_NORM, schedule
from adapters.progress import Steps


class Hooks:
    """Plain training; methods override."""

    model: LoraModel

    def __init__(self, model: LoraModel) -> None:
        self.model = model

    def batch_gradients(self, data: Prepared, batch: list[int], rng: random.Random) -> float:
        """Add the gradient of the loss on examples to the master weights'; returns the NLL of the task's own."""
        return self.model.add_gradients(data, batch)

    def penalty(self) -> Tensor | None:
        """A term of the loss on the master weights alone."""
        return None

    def after_step(self) -> None:
        """After the weights have moved."""


def train(model: LoraModel, data: Prepared, settings: LoraSettings, steps: int, hooks: Hooks | None = None) -> float:
    """AdamW, schedule, clipping and batches as for the experts; returns the mean NLL of the last tenth of the steps."""
    hooks = hooks or Hooks(model)
    rng = random.Random(settings.seed)
    draw = Batches(len(data), settings.batch_size, rng).draw
    parameters = list(model.weights.values())
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    with Steps("training", steps, "steps") as bar:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, steps)
            optimiser.zero_grad()
            losses.append(hooks.batch_gradients(data, draw(), rng))
            penalty = hooks.penalty()
            if penalty is not None:
                penalty.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimiser.step()
            model.use(model.weights)
            hooks.after_step()
            bar.advance(f"loss {sum(losses[-10:]) / len(losses[-10:]):.3f}")
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
