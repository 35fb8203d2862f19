"""The methods that train plain LoRA: one adapter on task after task, and one adapter for each task."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from adapters.benchmark.cells import Cell, write_atomically
from adapters.benchmark.learner import Fit
from adapters.benchmark.lora import LoraModel
from adapters.benchmark.lora_training import Hooks, train
from adapters.benchmark.records import Stage
from adapters.benchmark.settings import LoraSettings
from adapters.benchmark.tasks import TaskData
from adapters.data import Example
from adapters.examples import Prepared


class SequentialLora(Hooks):
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
        loss = train(self.model, data, self.settings, self.settings.steps * len(self.groups[group]), self)
        self.after_task(group, data)
        return Fit(loss, mean_tokens(data), self.model.num_parameters, self.num_held(group))

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
