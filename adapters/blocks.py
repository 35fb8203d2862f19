"""Which sub-blocks of the target weights a task should change: gradient warm-up, block scores, budget (eq. 2, 3).

Every target weight `W0 [d_out, d_in]` above the trunk is cut into a grid of `l x l` sub-blocks. The gradients of a few
batches of the new task, with the weights untouched, say where it pulls.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Site = tuple[int, str]
"""(decoder layer, target)."""


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


def layer_quotas(num_blocks: dict[int, int], coverage: dict[int, float], density: float) -> dict[int, int]:
    """How many blocks each layer may take of `N_base = floor(density · |B|)`: in inverse proportion to `1 + coverage`,
    the share of its blocks that earlier tasks hold. Largest remainders round it; no layer gets more than it has, or
    less than one.
    """
    total = int(density * sum(num_blocks.values()))
    weights = {layer: count / (1 + coverage.get(layer, 0.0)) for layer, count in num_blocks.items()}
    exact = _shares(total, weights, num_blocks)
    quotas = {layer: max(1, int(value)) for layer, value in exact.items()}
    by_remainder = sorted(exact, key=lambda layer: (int(exact[layer]) - exact[layer], layer))
    for layer in by_remainder:
        if sum(quotas.values()) >= total:
            break
        quotas[layer] = min(quotas[layer] + 1, num_blocks[layer])
    return quotas


def _shares(total: int, weights: dict[int, float], most: dict[int, int]) -> dict[int, float]:
    """`total` in proportion to the weights; what is more than a layer's `most` goes to the others."""
    shares: dict[int, float] = {}
    left = dict(weights)
    while left:
        scale = (total - sum(shares.values())) / sum(left.values())
        full = [layer for layer, weight in left.items() if weight * scale >= most[layer]]
        if not full:
            return shares | {layer: weight * scale for layer, weight in left.items()}
        shares |= {layer: float(most[layer]) for layer in full}
        left = {layer: weight for layer, weight in left.items() if layer not in shares}
    return shares


def select(scores: dict[Site, Tensor], quotas: dict[int, int]) -> dict[Site, Tensor]:
    """The best-scored blocks of each layer: `[n, 2]` int32 (row, column), sorted; a site without blocks is left out."""
    chosen: dict[Site, list[tuple[int, int]]] = {}
    for layer, quota in quotas.items():
        ranked = sorted(
            (
                (-value, target, row, column)
                for (at, target), grid in scores.items()
                if at == layer
                for row, values in enumerate(grid.tolist())
                for column, value in enumerate(values)
            )
        )
        for _, target, row, column in ranked[:quota]:
            chosen.setdefault((layer, target), []).append((row, column))
    return {site: torch.tensor(sorted(blocks), dtype=torch.int32) for site, blocks in sorted(chosen.items())}
