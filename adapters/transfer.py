"""Which earlier experts help a new task where both want the same sub-blocks: asked of the new task's own loss.

Split-on-Share (eq. 6) shares whatever two tasks both want. Tasks may pull the same blocks in different directions, and
deltas composed as they are then do harm that the few blocks left cannot undo (`docs/log.md`). Here an earlier expert is
shared, layer by layer, only where composing its delta lowers the loss on the new task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapters.batches import Batches
from adapters.blocks import Block, by_site
from adapters.examples import Prepared
from adapters.nll import nll_of
from adapters.progress import console, track
from adapters.routed import Expert, RoutedModel
from adapters.settings import LearnSettings
from adapters.split_on_share import by_layer, split_layer

Blocks = frozenset[Block]
NUM_BATCHES = 4
"""Batches of training examples that losses and gradients are taken over."""
MOST_SHARED = 0.5
"""Share of the blocks a task wants that may be shared: what it trains itself are the others."""
TRIED = (1.0, 0.5, 0.25)
"""Shares of the most helpful pieces: the first of them that lowers the loss is composed."""


@dataclass(frozen=True)
class Piece:
    """What a new task could share of one expert in one layer (eq. 6, 7)."""

    expert_id: str
    blocks: Blocks


def helpful_parts(model: RoutedModel, data: Prepared, wanted: Blocks, settings: LearnSettings) -> dict[str, Blocks]:
    """Earlier expert → the blocks of it that the new task shares; at most one expert a layer.

    Each layer's candidate is the expert whose piece lowers the loss most, to first order. Taken together they are less
    good than each by itself, so the loss is computed with all of them, and with fewer while it is no lower than the
    base model's.
    """
    draw = Batches(len(data), settings.batch_size, random.Random(settings.seed)).draw
    batches = [draw() for _ in range(NUM_BATCHES)]
    found = pieces(model.blocks(), wanted, settings)
    order = most_helpful(found, pulls(model, data, batches, found), int(MOST_SHARED * len(wanted)))
    if not order:
        return {}
    base = composed_nll(model, data, batches, {})
    for share in TRIED:
        parts = _united(order[: math.ceil(share * len(order))])
        composed = composed_nll(model, data, batches, parts)
        said = ", ".join(f"{len(blocks)} of {expert_id}" for expert_id, blocks in parts.items())
        console.print(f"sub-blocks to share: {said}; loss {base:.3f} → {composed:.3f}", highlight=False)
        if composed < base:
            return parts
    return {}


def pieces(held: Mapping[str, Blocks], wanted: Blocks, settings: LearnSettings) -> list[Piece]:
    """All that eq. 6 and 7 would share, by expert and layer."""
    return [
        Piece(expert_id, shared)
        for expert_id, blocks in held.items()
        for in_layer in by_layer(blocks).values()
        if (shared := split_layer(in_layer, wanted, settings.share_at_least, settings.keep_at_least)[0])
    ]


def pulls(model: RoutedModel, data: Prepared, batches: Sequence[Sequence[int]], found: Sequence[Piece]) -> list[float]:
    """`Σ_b <∂L/∂W_b, ΔW_b>` of each piece: how far composing it moves the batches' mean NLL `L`, to first order."""
    deltas = [_taken(model, piece.expert_id, piece.blocks) for piece in found]
    total = [0.0] * len(found)
    num_answers = sum(len(data.tokens[i].answer) for batch in batches for i in batch)
    for batch in track(batches if found else [], "which experts help", unit="batches"):
        with model.base_gradients() as weights:
            nll = nll_of(model, data, batch, model.compose([data.trunk[i] for i in batch], ())) / num_answers
            gradients = dict(zip(weights, torch.autograd.grad(nll, list(weights.values())), strict=True))
        for index, expert in enumerate(deltas):
            with torch.no_grad():
                total[index] += sum(float((gradients[site] * delta.dense()).sum()) for site, delta in expert.items())
    return total


def most_helpful(found: Sequence[Piece], pull: Sequence[float], most_blocks: int) -> list[Piece]:
    """Each layer's best piece if it lowers the loss, the best layers first, up to so many blocks in all."""
    chosen: list[Piece] = []
    taken: set[int] = set()
    for change, piece in sorted(zip(pull, found, strict=True), key=lambda pair: pair[0]):
        layer = next(iter(piece.blocks))[0]
        if change < 0 and layer not in taken and len(piece.blocks) <= most_blocks:
            chosen.append(piece)
            most_blocks -= len(piece.blocks)
        taken.add(layer)
    return chosen


@torch.no_grad()
def composed_nll(
    model: RoutedModel, data: Prepared, batches: Sequence[Sequence[int]], parts: Mapping[str, Blocks]
) -> float:
    """Mean NLL of the batches' answer tokens with these blocks of these experts on at every token, and nothing else."""
    copies = {f"{expert_id} (a part)": _taken(model, expert_id, blocks) for expert_id, blocks in parts.items()}
    for copy, expert in copies.items():
        model.add(copy, expert, [])
        model.freeze(copy)
    try:
        total = sum(
            float(nll_of(model, data, batch, model.compose([data.trunk[i] for i in batch], tuple(copies))))
            for batch in batches
        )
        return total / sum(len(data.tokens[i].answer) for batch in batches for i in batch)
    finally:
        for copy in copies:
            model.remove(copy)


def _taken(model: RoutedModel, expert_id: str, blocks: Blocks) -> Expert:
    return {site: model.experts[expert_id][site].take(places) for site, places in by_site(blocks).items()}


def _united(chosen: Sequence[Piece]) -> dict[str, Blocks]:
    parts: dict[str, Blocks] = {}
    for piece in chosen:
        parts[piece.expert_id] = parts.get(piece.expert_id, frozenset()) | piece.blocks
    return parts
