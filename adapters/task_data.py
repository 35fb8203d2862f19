"""A task's examples before anything is learned: which are held out, and that every one of them can be used."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from adapters.data import DataError, Example
from adapters.examples import render_all
from adapters.settings import LearnSettings

Tasks = Mapping[str, list[Example]]


@dataclass(frozen=True)
class TaskData:
    """What one task is learned from and evaluated on."""

    train: list[Example]
    test: list[Example]

    @classmethod
    def split(cls, examples: Sequence[Example], test: Sequence[Example] | None, settings: LearnSettings) -> TaskData:
        """Without held-out examples a share is kept back. Raises DataError for too few."""
        if test:
            return cls(list(examples), list(test))
        count = max(1, round(settings.held_out * len(examples)))
        if len(examples) <= count:
            raise DataError(
                f"task {examples[0].task!r}: {len(examples)} example(s) found, at least 2 expected: "
                "one to train on and one to hold out"
            )
        shuffled = random.Random(settings.seed).sample(list(examples), len(examples))
        return cls(shuffled[count:], shuffled[:count])


def check_all(backbone: Backbone, data: Mapping[str, TaskData], max_tokens: int) -> None:
    """Render everything once, before the first task is learned.

    Raises DataError where an example cannot be rendered, or none of a task fits.
    """
    for name, task in data.items():
        render_all(backbone, task.train, max_tokens, name)
        render_all(backbone, task.test, max_tokens, f"{name} (held out)")
