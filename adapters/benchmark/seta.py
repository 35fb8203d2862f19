"""`seta`: this project's method, through the very functions that `seta learn` calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from adapters.bank import ExpertInfo, Manifest
from adapters.benchmark.cells import Cell
from adapters.benchmark.learner import Fit
from adapters.benchmark.records import Stage
from adapters.benchmark.routing import measure_routing, strip_instructions
from adapters.benchmark.settings import SetaSettings
from adapters.benchmark.tasks import TaskData
from adapters.calibrate import template_lengths
from adapters.checkpoint import read_checkpoint
from adapters.data import DataError, Example
from adapters.evaluate import score_task
from adapters.examples import Prepared, prepare, render_all
from adapters.learn import learn
from adapters.learner import open_learner
from adapters.settings import LearnSettings


class SetaLearner:
    """Its state between tasks is the bank itself."""

    def __init__(self, cell: Cell, tasks: list[TaskData], model_dir: Path, work: Path) -> None:
        settings = cell.method.settings
        assert isinstance(settings, SetaSettings)
        self.tasks = tasks
        self.learner = open_learner(work / "bank", str(model_dir), settings, settings.run)
        self.tests: dict[int, Prepared] = {}
        self.scores: dict[int, float] = {}

    @property
    def groups(self) -> list[list[int]]:
        return [[index] for index in range(len(self.tasks))]

    @property
    def num_learned(self) -> int:
        return len(self.learner.manifest.tasks)

    def restore(self, stages: tuple[Stage, ...]) -> None:
        if not len(stages) <= self.num_learned <= len(stages) + 1:
            raise DataError(
                f"the cell's bank knows {self.num_learned} tasks, its progress says {len(stages)}; remove its folder"
            )

    def learn(self, group: int) -> Fit:
        """Learning evaluates the new task itself; that time is taken off."""
        task = self.tasks[group]
        before, start = self.learner.manifest, time.monotonic()
        is_new = self.num_learned == group  # else the task was published, and the process killed before it said so
        is_timed = is_new and read_checkpoint(self.learner.bank) is None  # else a killed process did a part of it
        if is_new:
            self.learner.held_out.clear()
            learn(self.learner, task.name, task.train, task.test)
            self.tests[group] = self.learner.held_out[task.name]
        learned = time.monotonic()
        self.scores = {group: self._score(group)}
        seconds = learned - start - (time.monotonic() - learned)
        manifest = self.learner.manifest
        data_tokens = self._mean_tokens(task.train)
        loss = manifest.tasks[group].metrics.get("final_loss")
        parameters = trained_parameters(before if is_new else None, manifest, task.name, self.learner.settings)
        return Fit(loss, data_tokens, parameters, held_parameters(manifest), max(seconds, 0.0), is_timed)

    def accuracy(self, task: int) -> float:
        if task not in self.scores:
            self.scores[task] = self._score(task)
        return self.scores[task]

    def details(self, is_last: bool) -> dict[str, Any]:
        """Routing and blocks; without instructions only at the end, as that takes another pass through the trunk."""
        gate, prefix = self.learner.gate, template_lengths(self.learner.backbone)[0]
        tests = {index: self._tests(index) for index in range(self.num_learned)}
        found: dict[str, Any] = {
            "routing": measure_routing(gate, tests, prefix),
            "blocks": count_blocks(self.learner.manifest),
        }
        if is_last:
            bare = {i: self._prepare(strip_instructions(t.train, t.test), t.name) for i, t in enumerate(self.tasks)}
            found["routing_stripped"] = measure_routing(gate, bare, prefix)
        return found

    def save(self, num_groups: int) -> None:
        """Publishing saved it."""

    def _score(self, index: int) -> float:
        return score_task(
            self.learner.model, self.learner.gate, self._tests(index), index, self.tasks[index].name
        ).accuracy

    def _tests(self, index: int) -> Prepared:
        if index not in self.tests:
            self.tests[index] = self._prepare(self.tasks[index].test, self.tasks[index].name)
        return self.tests[index]

    def _prepare(self, examples: list[Example], what: str) -> Prepared:
        manifest, settings = self.learner.manifest, self.learner.settings
        return prepare(
            self.learner.backbone, examples, manifest.trunk_layers, self.learner.gate, settings.max_tokens, what
        )[0]

    def _mean_tokens(self, examples: list[Example]) -> float:
        tokens = render_all(self.learner.backbone, examples, self.learner.settings.max_tokens, "training examples")[0]
        return sum(len(found.ids) - 1 for found in tokens) / len(tokens)


def count_blocks(manifest: Manifest) -> tuple[int, int]:
    """Sub-blocks that the bank's experts hold; what they would be if each task had all of its experts to itself."""
    held = sum(expert.num_blocks for expert in manifest.experts)
    linear = sum(len(expert.tasks) * expert.num_blocks for expert in manifest.experts)
    return held, linear


def trained_parameters(before: Manifest | None, after: Manifest, task: str, settings: LearnSettings) -> int:
    """Values of the task's experts that its learning changed; a shared part that was only cut out is as it was."""
    old = {expert.ref for expert in before.experts} if before else set()
    new = [expert for expert in after.experts if task in expert.tasks and expert.ref not in old]
    changed = [expert for expert in new if expert.tasks == (task,) or settings.sharing == "elastic"]
    return sum(num_values(expert, after.block_size) for expert in changed)


def held_parameters(manifest: Manifest) -> int:
    return sum(num_values(expert, manifest.block_size) for expert in manifest.experts)


def num_values(expert: ExpertInfo, block_size: int) -> int:
    """A and B of every sub-block."""
    return 2 * expert.num_blocks * expert.rank * block_size
