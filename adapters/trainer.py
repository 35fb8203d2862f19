"""Choose the blocks that a task should change, by their gradients on the untouched weights, and make its expert."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.batches import Batches
from adapters.blocks import Block, Site, WarmUp, block_means, by_site, standardise
from adapters.budget import coverage, layer_quotas, select, select_past_quotas
from adapters.examples import Prepared
from adapters.fit import backward_nll
from adapters.parallel import ALONE, Processes
from adapters.progress import Steps
from adapters.routed import Expert, RoutedModel
from adapters.score_history import ScoreHistory
from adapters.settings import LearnSettings
from adapters.sparse_lora import SparseDelta


@dataclass(frozen=True)
class Scored:
    """Standardised block scores (eq. 3) by site, and how many warm-up steps they took.

    `gradients`: the mean gradient of each target, `[d_out, d_in]` in its weight's dtype, where experts start from it.
    """

    scores: dict[Site, Tensor]
    warm_up_steps: int
    gradients: Mapping[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The blocks a task wants [P_t], their scores (eq. 3), and how many warm-up steps these took."""

    blocks: frozenset[Block]
    scores: dict[Site, Tensor]
    warm_up_steps: int


def choose_blocks(model: RoutedModel, scored: Scored, settings: LearnSettings, history: ScoreHistory) -> Choice:
    """Divergence (eq. 4) and the budget, from block scores."""
    scores = scored.scores
    held = frozenset[Block]().union(*model.blocks().values())
    wanted = history.diverging(scores) if settings.divergence else scores
    return Choice(frozenset(within_budget(wanted, held, settings)), scores, scored.warm_up_steps)


def within_budget(scores: dict[Site, Tensor], held: Collection[Block], settings: LearnSettings) -> list[Block]:
    """The best blocks under the layers' quotas; `held` are those of earlier tasks."""
    per_layer: dict[int, int] = {}
    for (layer, _), grid in scores.items():
        per_layer[layer] = per_layer.get(layer, 0) + grid.numel()
    quotas = layer_quotas(per_layer, coverage(per_layer, held), settings.density)
    if settings.adaptive_budget:
        return select_past_quotas(scores, quotas, held)
    return select(scores, quotas)


def score_blocks(
    model: RoutedModel, data: Prepared, settings: LearnSettings, accumulate: int = 1, processes: Processes = ALONE
) -> Scored:
    """Gradient warm-up on the untouched weights (eq. 2) and block scores (eq. 3)."""
    batches = Batches(len(data), settings.batch_size, random.Random(settings.seed))
    rule, stop, pulls = WarmUp(), False, dict[Site, Tensor]()
    with model.base_gradients() as weights, Steps("block scores", rule.max_steps, "steps") as steps:
        sums = {site: torch.zeros(_grid(weight, settings.block_size)) for site, weight in weights.items()}
        while not stop:
            batch = batches.draw()
            base = [torch.zeros(len(data.tokens[i].ids) - 1, 0) for i in batch]
            backward_nll(model, data, batch, base, accumulate, processes)
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights.values()]
            processes.add_up(gradients)
            squares = 0.0
            for (site, weight), found in zip(weights.items(), gradients, strict=True):
                gradient = found.float()
                squares += float(gradient.pow(2).sum())
                sums[site] += block_means(gradient, settings.block_size)
                if settings.init == "gradient":
                    pulls[site] = found if site not in pulls else pulls[site].add_(found)
                weight.grad = None
            stop = rule.should_stop(math.sqrt(squares))
            steps.advance(f"rho {rule.rhos[-1]:.3f}")
    count = len(rule.norms)
    scores = standardise({site: total / count for site, total in sums.items()})
    return Scored(scores, count, {site: pull.div_(count) for site, pull in pulls.items()})


def new_expert(model: RoutedModel, blocks: Collection[Block], settings: LearnSettings) -> Expert:
    """On those blocks, with random rows of A and a delta of zero."""
    generator = torch.Generator().manual_seed(settings.seed)
    expert: Expert = {}
    for site, found in by_site(blocks).items():
        base = model.sites[site].base
        shape = (base.out_features, base.in_features)
        expert[site] = SparseDelta.fresh(found, settings.rank, settings.block_size, shape, generator)
    return expert


def _grid(weight: Tensor, size: int) -> tuple[int, int]:
    return weight.shape[0] // size, weight.shape[1] // size
