"""Which earlier experts help a new task where both want the same sub-blocks: chosen by the new task's own loss.

Split-on-Share (eq. 6) shares whatever two tasks both want. Tasks may pull the same blocks in different directions, and
deltas composed as they are then do harm that the few blocks left cannot undo (`docs/log.md`). Here an earlier expert is
shared only if composing its common blocks lowers the loss on the new task, the best one first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from adapters.batches import Batches
from adapters.blocks import Block, by_site
from adapters.examples import Prepared
from adapters.nll import nll_of
from adapters.progress import console, track
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.split_on_share import split_on_share

Blocks = frozenset[Block]
NUM_BATCHES = 4
"""Batches of training examples that the losses are taken over."""
LEAST_GAIN = 0.05
"""An expert is shared if it lowers the loss by at least this share of it."""


def helpful_parts(model: RoutedModel, data: Prepared, wanted: Blocks, settings: LearnSettings) -> dict[str, Blocks]:
    """Earlier expert → the blocks of it (eq. 6, 7) that the new task shares; greedy, the most helpful first.

    What one expert's part covers is not asked of another, so the parts are disjoint but for what `keep_at_least` adds.
    """
    draw = Batches(len(data), settings.batch_size, random.Random(settings.seed)).draw
    batches = [draw() for _ in range(NUM_BATCHES)]
    held, parts = model.blocks(), dict[str, Blocks]()
    lowest = composed_nll(model, data, batches, parts)
    while offered := _offered(held, parts, wanted, settings):
        losses = {
            expert_id: composed_nll(model, data, batches, {**parts, expert_id: part})
            for expert_id, part in track(offered.items(), "experts that help", unit="experts")
        }
        best = min(losses, key=lambda expert_id: losses[expert_id])
        if losses[best] > (1 - LEAST_GAIN) * lowest:
            what = "no other" if parts else "no"
            console.print(
                f"{what} earlier expert helps: loss {lowest:.3f}, {losses[best]:.3f} with the best", highlight=False
            )
            break
        console.print(
            f"shares {len(offered[best])} sub-blocks of {best}: loss {lowest:.3f} → {losses[best]:.3f}", highlight=False
        )
        parts[best], lowest = offered[best], losses[best]
    return parts


@torch.no_grad()
def composed_nll(
    model: RoutedModel, data: Prepared, batches: Sequence[Sequence[int]], parts: Mapping[str, Blocks]
) -> float:
    """Mean NLL of the batches' answer tokens with these blocks of these experts on at every token, and nothing else."""
    copies = {f"{expert_id} (a part)": model.part(expert_id, by_site(blocks)) for expert_id, blocks in parts.items()}
    for copy, part in copies.items():
        model.add(copy, part, [])
        model.freeze(copy)
    try:
        total = sum(
            float(nll_of(model, data, batch, model.forward_with([data.trunk[i] for i in batch], tuple(copies))))
            for batch in batches
        )
        return total / sum(len(data.tokens[i].answer) for batch in batches for i in batch)
    finally:
        for copy in copies:
            model.remove(copy)


def _offered(
    held: Mapping[str, Blocks], parts: Mapping[str, Blocks], wanted: Blocks, settings: LearnSettings
) -> dict[str, Blocks]:
    """What each expert that is not shared yet has of the blocks that are still wanted, where it has any."""
    left = wanted.difference(*parts.values())
    others = {expert_id: blocks for expert_id, blocks in held.items() if expert_id not in parts}
    return split_on_share(others, left, settings.share_at_least, settings.keep_at_least).parts
