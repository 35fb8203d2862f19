"""What is kept of earlier tasks' block scores, so that a new task can be pushed away from them (eq. 4).

Their data is gone, so the scores cannot be computed again: a bank carries their mean and count in one small object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.bank import BankCorrupt, Manifest
from adapters.blocks import Site

COUNT = "count"


@dataclass(frozen=True)
class ScoreHistory:
    """`mean[site] [rows, columns]` float32: the mean of `count` tasks' standardised scores (eq. 3)."""

    count: int = 0
    mean: Mapping[Site, Tensor] | None = None

    def with_task(self, scores: Mapping[Site, Tensor]) -> ScoreHistory:
        count = self.count + 1
        if self.mean is None:
            return ScoreHistory(count, {site: grid.float() for site, grid in scores.items()})
        return ScoreHistory(count, {site: old + (scores[site] - old) / count for site, old in self.mean.items()})

    def diverging(self, scores: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """`S~_t = a S^_t + (1 - a) |S^_t - mean(S^_1..t-1)|`, `a = 1 / (1 + ln t)`, t = `count` + 1 (eq. 4)."""
        if self.mean is None:
            return dict(scores)
        own = 1 / (1 + math.log(self.count + 1))
        return {site: own * grid + (1 - own) * (grid - self.mean[site]).abs() for site, grid in scores.items()}

    def tensors(self) -> dict[str, Tensor]:
        """As the bank keeps it: `count [1]` and one grid `layers.<i>.<target>` a site, float32. Not for count 0."""
        assert self.mean is not None, "no task has been scored"
        grids = {f"layers.{layer}.{target}": grid for (layer, target), grid in self.mean.items()}
        return {COUNT: torch.tensor([float(self.count)]), **grids}

    @classmethod
    def of(cls, manifest: Manifest, tensors: Mapping[str, Tensor] | None) -> ScoreHistory:
        """The history of a generation; names, dtypes and shapes are checked. Raises BankCorrupt."""
        if tensors is None:
            return cls()
        shapes: dict[str, tuple[int, ...]] = {COUNT: (1,)}
        names: dict[str, Site] = {}
        for layer in range(manifest.trunk_layers, manifest.base.num_layers):
            for target in manifest.targets:
                rows, columns = (dim // manifest.block_size for dim in manifest.base.target_dims(target))
                names[f"layers.{layer}.{target}"] = layer, target
                shapes[f"layers.{layer}.{target}"] = rows, columns
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == torch.float32}
        wrong = sorted(name for name in shapes.keys() | tensors.keys() if found.get(name) != shapes.get(name))
        if wrong or float(tensors[COUNT]) < 1:
            raise BankCorrupt(
                f"scores of generation {manifest.generation}: {', '.join(wrong[:3]) or COUNT} not as expected: "
                "count [1] of at least 1, and one float32 grid per projection above the trunk; restore it from a copy"
            )
        return cls(int(tensors[COUNT]), {site: tensors[name] for name, site in names.items()})
