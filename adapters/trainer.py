"""Choose a task's blocks by gradient, and fit the experts that learn it.

The trunk runs once per example. The experts train under the gate's own decisions, and for a share of the examples they
start later still: an expert that always saw itself from the first token fails when a causal gate switches it on in
mid-prompt.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.anchoring import Anchors
from adapters.blocks import Block, Site, WarmUp, block_means, by_site, standardise
from adapters.budget import coverage, layer_quotas, select, select_past_quotas
from adapters.examples import Prepared
from adapters.gate_learning import Decisions
from adapters.progress import Steps
from adapters.routed import Expert, RoutedModel
from adapters.score_history import ScoreHistory
from adapters.settings import LearnSettings
from adapters.sparse_lora import SparseDelta

LEARNING_RATE_FLOOR = 0.1
WARM_UP_STEPS = 10
CLIP_NORM = 1.0

BatchSource = Callable[[], list[int]]


def batch_source(count: int, batch_size: int, rng: random.Random) -> BatchSource:
    """Batches of shuffled indices, epoch after epoch; a set smaller than a batch is a batch."""
    order: list[int] = []

    def draw() -> list[int]:
        nonlocal order
        if len(order) < min(batch_size, count):
            order = rng.sample(range(count), count)
        batch, order = order[:batch_size], order[batch_size:]
        return batch

    return draw


def answer_loss(model: RoutedModel, data: Prepared, batch: list[int], weights: list[Tensor]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens (the NLL of eq. 13), from cached trunk outputs."""
    output = model.forward([data.trunk[i] for i in batch], weights)
    rows, positions, labels = data.targets(batch)
    logits = model.backbone.logits(output[rows, positions])
    return nn.functional.cross_entropy(logits.float(), labels)


@dataclass(frozen=True)
class Choice:
    """The blocks a task wants [P_t], their scores (eq. 3), and how many warm-up steps these took."""

    blocks: frozenset[Block]
    scores: dict[Site, Tensor]
    warm_up_steps: int


def choose_blocks(model: RoutedModel, data: Prepared, settings: LearnSettings, history: ScoreHistory) -> Choice:
    """Gradient warm-up on the untouched weights (eq. 2), block scores (eq. 3, 4), the budget."""
    scores, warm_up_steps = score_blocks(model, data, settings)
    held = frozenset[Block]().union(*model.blocks().values())
    wanted = history.diverging(scores) if settings.divergence else scores
    return Choice(frozenset(within_budget(wanted, held, settings)), scores, warm_up_steps)


def within_budget(scores: dict[Site, Tensor], held: Collection[Block], settings: LearnSettings) -> list[Block]:
    """The best blocks under the layers' quotas; `held` are those of earlier tasks."""
    per_layer: dict[int, int] = {}
    for (layer, _), grid in scores.items():
        per_layer[layer] = per_layer.get(layer, 0) + grid.numel()
    quotas = layer_quotas(per_layer, coverage(per_layer, held), settings.density)
    if settings.adaptive_budget:
        return select_past_quotas(scores, quotas, held)
    return select(scores, quotas)


def score_blocks(model: RoutedModel, data: Prepared, settings: LearnSettings) -> tuple[dict[Site, Tensor], int]:
    """Standardised block scores (eq. 3) and the number of warm-up steps (eq. 2)."""
    draw = batch_source(len(data), settings.batch_size, random.Random(settings.seed))
    weights = {site: routed.base.weight for site, routed in model.sites.items()}
    sums = {site: torch.zeros(_grid(weight, settings.block_size)) for site, weight in weights.items()}
    rule, stop = WarmUp(), False
    with _gradients_of(list(weights.values())), Steps("block scores", rule.max_steps, "steps") as steps:
        while not stop:
            batch = draw()
            answer_loss(model, data, batch, [torch.zeros(len(data.trunk[i]), 0) for i in batch]).backward()
            squares = 0.0
            for site, weight in weights.items():
                assert weight.grad is not None
                gradient = weight.grad.float()
                squares += float(gradient.pow(2).sum())
                sums[site] += block_means(gradient, settings.block_size)
                weight.grad = None
            stop = rule.should_stop(math.sqrt(squares))
            steps.advance(f"rho {rule.rhos[-1]:.3f}")
    return standardise({site: total / len(rule.norms) for site, total in sums.items()}), len(rule.norms)


def new_expert(model: RoutedModel, blocks: Collection[Block], settings: LearnSettings) -> Expert:
    generator = torch.Generator().manual_seed(settings.seed)
    expert: Expert = {}
    for site, found in by_site(blocks).items():
        base = model.sites[site].base
        shape = (base.out_features, base.in_features)
        expert[site] = SparseDelta.fresh(found, settings.rank, settings.block_size, shape, generator)
    return expert


def fit_experts(
    model: RoutedModel,
    plastic: Sequence[str],
    data: Prepared,
    settings: LearnSettings,
    anchors: Anchors,
    decisions: Decisions,
) -> float:
    """AdamW on the rank rows of the experts `plastic`, and on the gate if it learns; all else is frozen.

    Returns the mean NLL of the last tenth of the steps.
    """
    rng = random.Random(settings.seed)
    draw = batch_source(len(data), settings.batch_size, rng)
    parameters = [p for expert_id in plastic for delta in model.experts[expert_id].values() for p in delta.parameters()]
    gate_parameters = decisions.parameters()
    rates = [(parameters, settings.learning_rate), (gate_parameters, settings.gate_learning_rate)]
    optimiser = torch.optim.AdamW([{"params": p, "peak": rate} for p, rate in rates if p], weight_decay=0.0)
    losses: list[float] = []
    started, tokens = time.monotonic(), 0
    with Steps("training", settings.steps, "steps") as steps:
        for step in range(settings.steps):
            batch = draw()
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(step, settings.steps)
            weights = [
                late_start(decisions.weights(data, i), len(data.tokens[i].prompt), settings.late_start, rng)
                for i in batch
            ]
            nll = answer_loss(model, data, batch, weights)
            loss = objective(nll, anchors, decisions, data, batch, settings)
            if loss.requires_grad:  # else the gate sends no token of the batch to the expert
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
                nn.utils.clip_grad_norm_(gate_parameters, CLIP_NORM)
                optimiser.step()
            losses.append(float(nll.detach()))
            tokens += sum(len(data.trunk[i]) for i in batch)
            recent = losses[-10:]
            steps.advance(f"loss {sum(recent) / len(recent):.3f}, {tokens / (time.monotonic() - started):.0f} tokens/s")
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def objective(
    nll: Tensor, anchors: Anchors, decisions: Decisions, data: Prepared, batch: Sequence[int], settings: LearnSettings
) -> Tensor:
    """`NLL + L_reg + L_gate` (eq. 13); NLL alone where no shared expert and no gate learns."""
    terms, strengths = [nll], dict[str, float]()
    if anchors.by_expert:
        weight_penalty, strengths = anchors.weight_penalty()
        terms += [weight_penalty] if settings.anchor_weights else []
    terms += decisions.penalties(data, batch, strengths if settings.anchor_routes else {})
    return torch.stack(terms).sum() if len(terms) > 1 else nll


def late_start(weights: Tensor, prompt_length: int, share: float, rng: random.Random) -> Tensor:
    """An example's decisions `[T, columns]`; with probability `share`, base until a random token of its prompt."""
    if rng.random() >= share:
        return weights
    first = int(weights.any(-1).int().argmax())
    start = rng.randint(first, max(first, prompt_length - 1))
    is_on = (torch.arange(len(weights)) >= start).unsqueeze(-1)
    return weights * is_on


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (LEARNING_RATE_FLOOR + (1 - LEARNING_RATE_FLOOR) * cosine)


def _grid(weight: Tensor, size: int) -> tuple[int, int]:
    return weight.shape[0] // size, weight.shape[1] // size


class _gradients_of:
    """While open, the given frozen weights collect gradients."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights

    def __enter__(self) -> None:
        for weight in self.weights:
            weight.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for weight in self.weights:
            weight.requires_grad_(False)
            weight.grad = None
