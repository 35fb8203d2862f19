"""The methods that train plain LoRA: one adapter on task after task, and one adapter for each task."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from adapters.benchmark.cells import Cell, write_atomically
from adapters.benchmark.learner import Fit
from adapters.benchmark.lora import LoraModel
from adapters.benchmark.records import Stage
from adapters.benchmark.settings import LoraSettings
from adapters.benchmark.tasks import TaskData
from adapters.data import Example
from adapters.examples import Prepared
from adapters.progress import Steps
from adapters.trainer import CLIP_NORM, batch_source, schedule


class SequentialLora:
    """`seq-lora`: one LoRA trained on task after task, with nothing against forgetting. The others build on it."""

    def __init__(self, cell: Cell, tasks: list[TaskData], model_dir: Path, work: Path) -> None:
        assert isinstance(cell.method.settings, LoraSettings)
        self.settings = cell.method.settings
        self.tasks, self.model_dir, self.work = tasks, model_dir, work
        self.model = LoraModel(model_dir, self.settings)
        self.tests: dict[int, Prepared] = {}
        self.start()

    @property
    def groups(self) -> list[list[int]]:
        """The tasks by index, those of one group learned together."""
        return [[index] for index in range(len(self.tasks))]

    # What a method may change.

    def start(self) -> None:
        """Before the first group, and before a state is loaded."""

    def before_task(self, group: int) -> None:
        """Before a group's training."""

    def batch_gradients(self, data: Prepared, batch: list[int], rng: random.Random) -> float:
        """Add the gradient of the loss on examples to the master weights'; returns the NLL of the task's own."""
        return self.model.add_gradients(data, batch)

    def penalty(self) -> Tensor | None:
        """A term of the loss on the master weights alone."""
        return None

    def after_step(self, step: int) -> None:
        """`step` counts from 1."""

    def after_task(self, group: int, data: Prepared) -> None:
        """After a group's training."""

    def state(self) -> dict[str, Tensor]:
        """All that later tasks and the evaluation need."""
        return {f"weights.{name}": weight.detach() for name, weight in self.model.weights.items()}

    def load_state(self, tensors: dict[str, Tensor], num_groups: int) -> None:
        with torch.no_grad():
            for name, weight in self.model.weights.items():
                weight.copy_(tensors[f"weights.{name}"])
        self.model.use(self.model.weights)

    def num_held(self, group: int) -> int:
        """Values kept to answer with after a group."""
        return self.model.num_parameters

    # What they share.

    def learn(self, group: int) -> Fit:
        examples = [example for index in self.groups[group] for example in self.tasks[index].train]
        data = self.render(examples, f"task {group + 1}")
        self.before_task(group)
        loss = self.fit(data, self.settings.steps * len(self.groups[group]))
        self.after_task(group, data)
        return Fit(loss, mean_tokens(data), self.model.num_parameters, self.num_held(group))

    def fit(self, data: Prepared, steps: int) -> float:
        """AdamW, schedule, clipping and batches as for the experts; returns the mean loss of the last tenth."""
        rng = random.Random(self.settings.seed)
        draw = batch_source(len(data), self.settings.batch_size, rng)
        parameters = list(self.model.weights.values())
        optimiser = torch.optim.AdamW(parameters, lr=self.settings.learning_rate, weight_decay=0.0)
        losses: list[float] = []
        with Steps("training", steps, "steps") as bar:
            for step in range(steps):
                for group in optimiser.param_groups:
                    group["lr"] = self.settings.learning_rate * schedule(step, steps)
                optimiser.zero_grad()
                losses.append(self.batch_gradients(data, draw(), rng))
                penalty = self.penalty()
                if penalty is not None:
                    penalty.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
                optimiser.step()
                self.model.use(self.model.weights)
                self.after_step(step + 1)
                bar.advance(f"loss {sum(losses[-10:]) / len(losses[-10:]):.3f}")
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def accuracy(self, task: int) -> float:
        name = self.tasks[task].name
        if task not in self.tests:
            self.tests[task] = self.render(self.tasks[task].test, name)
        return self.model.accuracy(self.tests[task], name)

    def details(self, is_last: bool) -> dict[str, object]:
        return {}

    def save(self, num_groups: int) -> None:
        """The state after `num_groups` groups; the one before it is removed when the next is saved."""
        write_atomically(self._state_path(num_groups), save(self.state()))
        self._state_path(num_groups - 2).unlink(missing_ok=True)

    def restore(self, stages: tuple[Stage, ...]) -> None:
        if stages:
            self.load_state(load_file(self._state_path(len(stages))), len(stages))

    def render(self, examples: list[Example], what: str) -> Prepared:
        return self.model.render(examples, self.settings.max_tokens, what)

    def _state_path(self, num_groups: int) -> Path:
        return self.work / f"state-{num_groups}.safetensors"


class JointLora(SequentialLora):
    """`joint`: one LoRA on the examples of all tasks at once, for as many steps as they take one after another."""

    @property
    def groups(self) -> list[list[int]]:
        return [list(range(len(self.tasks)))]


class PerTaskLora(SequentialLora):
    """`per-task`: a LoRA of its own for each task, and the task is given: what perfect isolation and routing reach."""

    known: dict[int, float]

    def start(self) -> None:
        self.known = {}

    def before_task(self, group: int) -> None:
        self.model.reset(self.settings.seed)

    def num_held(self, group: int) -> int:
        return (group + 1) * self.model.num_parameters

    def accuracy(self, task: int) -> float:
        """An earlier task's adapter never changes, so neither does its accuracy."""
        if task not in self.known:
            self.known[task] = super().accuracy(task)
        return self.known[task]

    def restore(self, stages: tuple[Stage, ...]) -> None:
        super().restore(stages)
        self.known = dict(enumerate(stages[-1].accuracy)) if stages else {}


def mean_tokens(data: Prepared) -> float:
    """Tokens of an example that run through the model, on average."""
    return sum(len(tokens.ids) - 1 for tokens in data.tokens) / len(data)
