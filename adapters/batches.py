"""Batches of shuffled indices, epoch after epoch, that can be gone on with where another process stopped."""

from __future__ import annotations

import random
from typing import Any

from pydantic import JsonValue


class Batches:
    """A set smaller than a batch is a batch. `rng` may be used by others too: it is part of the state."""

    def __init__(self, count: int, batch_size: int, rng: random.Random) -> None:
        self.count, self.batch_size, self.rng = count, batch_size, rng
        self.order: list[int] = []

    def draw(self) -> list[int]:
        if len(self.order) < min(self.batch_size, self.count):
            self.order = self.rng.sample(range(self.count), self.count)
        batch, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return batch

    def state(self) -> dict[str, JsonValue]:
        version, words, gauss = self.rng.getstate()
        return {"order": list(self.order), "version": version, "words": list(words), "gauss": gauss}

    def restore(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])
        self.rng.setstate((state["version"], tuple(state["words"]), state["gauss"]))
