"""The checkpoint of one task, from the start of its learning to its publication: `LearningLog.start` down."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from datetime import datetime

from pydantic import JsonValue
from torch import Tensor

from adapters.bank import Bank, Manifest
from adapters.blocks import Site
from adapters.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointInfo,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from adapters.fit import Fitting
from adapters.progress import console
from adapters.recipe import creation_time
from adapters.settings import LearnSettings
from adapters.trainer import Scored

SCORES, GRADIENT = "scores.", "gradient."
WARM_UP = "warm_up_steps"


class LearningLog:
    """What of one task is done already; it is written as the task goes on, by one process, every so often."""

    def __init__(self, bank: Bank, checkpoint: Checkpoint, every_seconds: float, is_writer: bool, is_new: bool) -> None:
        self.bank, self.checkpoint, self.is_new = bank, checkpoint, is_new
        self.every_seconds, self.is_writer = every_seconds, is_writer
        self.written = time.monotonic()

    @classmethod
    def start(
        cls,
        bank: Bank,
        manifest: Manifest,
        task: str,
        recipe: str,
        settings: LearnSettings,
        every_seconds: float,
        is_writer: bool = True,
    ) -> LearningLog:
        """With what an interrupted call left of this task, if anything.

        Raises CheckpointError if something else was left, BankError.
        """
        info = CheckpointInfo(
            task=task,
            recipe_sha256=recipe,
            parent_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(),
            settings=settings.model_dump(mode="json"),
            started=creation_time(),
        )
        found = read_checkpoint(bank)
        if found is not None:
            refuse_another(found.info, info)
            console.print(f"going on with {task!r}, {found.info.step} of {settings.steps} steps done", highlight=False)
        return cls(bank, found or Checkpoint(info), every_seconds, is_writer, is_new=found is None)

    def begin(self) -> None:
        """Note when the task was begun. With several processes: once all have read what there was."""
        if self.is_new:
            self._write({}, {}, 0)

    @property
    def recipe(self) -> str:
        return self.checkpoint.info.recipe_sha256

    @property
    def started(self) -> datetime:
        """When the first call began with the task."""
        return self.checkpoint.info.started

    def scores(self) -> Scored | None:
        """If it came that far."""
        steps = self.checkpoint.info.state.get(WARM_UP)
        if not isinstance(steps, int):
            return None
        return Scored(self._by_site(SCORES), steps, self._by_site(GRADIENT))

    def keep_scores(self, scored: Scored) -> Scored:
        """The gradients too, until the training has begun: they say where its experts start."""
        tensors = _named(SCORES, scored.scores) | _named(GRADIENT, scored.gradients)
        self._write(tensors, {WARM_UP: scored.warm_up_steps}, 0)
        return scored

    def restore(self, fitting: Fitting) -> None:
        """Bring the training to where it was."""
        info = self.checkpoint.info
        if info.step:
            fitting.restore(self.checkpoint.tensors, info.state)

    def keep(self, fitting: Fitting) -> None:
        """After a step: write where the training is, if the last time was long enough ago or it was the last step."""
        is_last = fitting.step == fitting.settings.steps
        if self.is_writer and (is_last or time.monotonic() - self.written >= self.every_seconds):
            self._write(*fitting.state(), fitting.step)

    def close(self) -> None:
        """The task is published."""
        remove_checkpoint(self.bank)

    def _by_site(self, prefix: str) -> dict[Site, Tensor]:
        found = {name: tensor for name, tensor in self.checkpoint.tensors.items() if name.startswith(prefix)}
        parts = {name: name.removeprefix(prefix).split(".") for name in found}
        return {(int(layer), target): found[name] for name, (layer, target) in parts.items()}

    def _write(self, tensors: Mapping[str, Tensor], state: Mapping[str, JsonValue], step: int) -> None:
        """Together with the scores, once they are known."""
        old = self.checkpoint
        scores = {name: tensor for name, tensor in old.tensors.items() if name.startswith(SCORES)}
        warm_up = {name: value for name, value in old.info.state.items() if name == WARM_UP}
        info = old.info.model_copy(update={"step": step, "state": {**warm_up, **state}})
        self.checkpoint = Checkpoint(info, {**scores, **tensors})
        if self.is_writer:
            write_checkpoint(self.bank, self.checkpoint)
            self.written = time.monotonic()


def _named(prefix: str, by_site: Mapping[Site, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{layer}.{target}": tensor for (layer, target), tensor in by_site.items()}


def latest_of_call(bank: Bank, manifest: Manifest, recipes: Mapping[str, str]) -> Manifest:
    """The last generation that calls with these recipes made from `manifest`, CURRENT's; `manifest` if none did.

    It may not be CURRENT: its writer was killed in between, or does not make its generations CURRENT.
    """
    latest = manifest
    for number in (n for n in bank.generations() if n > manifest.generation):
        found = bank.manifest(number)
        last = found.tasks[-1] if found.tasks else None
        if found.parent == latest.generation and last and last.recipe_sha256 == recipes.get(last.name, ""):
            latest = found
    return latest


def drop_if_published(bank: Bank, recipes: Collection[str]) -> None:
    """Remove the checkpoint of a task that is published: its call was killed in between. `recipes`: of known tasks."""
    found = read_checkpoint(bank)
    if found is not None and found.info.recipe_sha256 in recipes:
        remove_checkpoint(bank)


def refuse_another(found: CheckpointInfo, wanted: CheckpointInfo) -> None:
    """CheckpointError unless what was left is of the very task that is to be learned now."""
    if (found.recipe_sha256, found.parent_sha256) == (wanted.recipe_sha256, wanted.parent_sha256):
        return
    if found.parent_sha256 != wanted.parent_sha256:
        why = "the bank has another generation since"
    elif found.task != wanted.task:
        why = f"task {wanted.task!r} was asked for"
    else:
        names = sorted(found.settings.keys() | wanted.settings.keys())
        pairs = [(name, found.settings.get(name), wanted.settings.get(name)) for name in names]
        changed = [f"{name} was {old!r}, now {new!r}" for name, old, new in pairs if old != new]
        why = ", ".join(changed) or "its examples are others now"
    raise CheckpointError(
        f"learning task {found.task!r} was interrupted after {found.step} steps, and {why}; "
        "give the same command again to go on with it, or --fresh to drop it"
    )
