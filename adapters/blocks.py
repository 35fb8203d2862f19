"""Which sub-blocks of the target weights a task should change: gradient warm-up and block scores (eq. 2, 3).

Every target weight `W0 [d_out, d_in]` above the trunk is cut into a grid of `l x l` sub-blocks. The gradients of a few
batches of the new task, with the weights untouched, say where it pulls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Site = tuple[int, str]
"""(decoder layer, target)."""
Block = tuple[int, str, int, int]
"""(decoder layer, target, row, column) of a sub-block in its projection's grid."""


@dataclass
class WarmUp:
    """Stopping rule (eq. 2): stop once `rho(t) = ‖g‖_t / Σ_{s≤t} ‖g‖_s` is below its own coefficient of variation.

    That is taken over the last `window` steps, so there is no stop before `window` steps; `max_steps` always stops.
    """

    window: int = 10
    max_steps: int = 100
    norms: list[float] = field(default_factory=list)
    rhos: list[float] = field(default_factory=list)

    def should_stop(self, gradient_norm: float) -> bool:
        """Tell it the norm of one more step's gradient."""
        self.norms.append(gradient_norm)
        self.rhos.append(gradient_norm / max(sum(self.norms), 1e-30))
        if len(self.rhos) >= self.max_steps:
            return True
        if len(self.rhos) < self.window:
            return False
        recent = torch.tensor(self.rhos[-self.window :], dtype=torch.float64)
        variation = float(recent.std(unbiased=False) / recent.mean().clamp_min(1e-30))
        return self.rhos[-1] < variation


def block_means(gradient: Tensor, size: int) -> Tensor:
    """Mean of `|gradient|` in each block (eq. 3): `[d_out, d_in]` → `[d_out / l, d_in / l]`."""
    rows, columns = gradient.shape[0] // size, gradient.shape[1] // size
    return gradient.abs().reshape(rows, size, columns, size).mean(dim=(1, 3))


def standardise(means: dict[Site, Tensor]) -> dict[Site, Tensor]:
    """Scores with mean 0 and variance 1 per decoder layer, over all of the layer's targets (eq. 3)."""
    scores: dict[Site, Tensor] = {}
    for layer in {layer for layer, _ in means}:
        sites = [site for site in means if site[0] == layer]
        values = torch.cat([means[site].flatten() for site in sites])
        mean, deviation = values.mean(), values.std(unbiased=False).clamp_min(1e-30)
        scores.update({site: (means[site] - mean) / deviation for site in sites})
    return scores


def ranked(scores: Mapping[Site, Tensor]) -> list[Block]:
    """All blocks, best score first; equal scores in the order of their places."""
    found = [
        (-value, layer, target, row, column)
        for (layer, target), grid in scores.items()
        for row, values in enumerate(grid.tolist())
        for column, value in enumerate(values)
    ]
    return [(layer, target, row, column) for _, layer, target, row, column in sorted(found)]


def blocks_at(sites: Mapping[Site, Tensor]) -> frozenset[Block]:
    """The blocks of an expert or a choice, given as `[n, 2]` (row, column) per site."""
    return frozenset((*site, row, column) for site, places in sites.items() for row, column in places.tolist())


def by_site(blocks: Iterable[Block]) -> dict[Site, Tensor]:
    """Per site `[n, 2]` int32 (row, column), sorted; a site without blocks is left out."""
    places: dict[Site, list[tuple[int, int]]] = {}
    for layer, target, row, column in sorted(blocks):
        places.setdefault((layer, target), []).append((row, column))
    return {site: torch.tensor(found, dtype=torch.int32) for site, found in places.items()}
