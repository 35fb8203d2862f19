"""Bring an imported expert to the adapter's answers although it starts to act later than the adapter did.

    L = mean over the tokens that the gate sends to the expert of KL(p_adapter ‖ p_expert)

The adapter acts on every token, the chat template's first ones included; the expert from the token on at which the gate
knows the task. What the adapter wrote into the earlier tokens' keys and values is missing then. A few dozen prompts and
the adapter's own predictions on them make up for a part of it (`docs/log.md`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.batches import Batches
from adapters.examples import Prepared
from adapters.fit import CLIP_NORM, schedule
from adapters.progress import Steps
from adapters.routed import RoutedModel
from adapters.trunk_cache import TrunkCache, TrunkMemory

BATCH_TOKENS = 2048
BATCH_SIZE = 16
LEARNING_RATE = 1e-3
MAX_POSITIONS = 512
"""Of a batch, at random: every one takes a row of logits over the vocabulary, twice."""


@torch.no_grad()
def adapter_outputs(model: RoutedModel, data: Prepared, task: int, memory: TrunkMemory) -> TrunkCache:
    """The last layer's output `[T_i, d]` for each example with the task's experts on from the first token."""
    lengths = [len(tokens.ids) - 1 for tokens in data.tokens]
    outputs = TrunkCache(lengths, model.backbone.model.config.hidden_size, model.backbone.dtype, memory)
    for batch in data.batches(BATCH_TOKENS):
        weights = [torch.zeros(lengths[i], task + 1).index_fill(1, torch.tensor(task), 1.0) for i in batch]
        found = model.forward([data.trunk[i] for i in batch], weights)
        for row, index in enumerate(batch):
            outputs.put(index, found[row, : lengths[index]])
    return outputs


def adapt(model: RoutedModel, expert_id: str, data: Prepared, wanted: TrunkCache, steps: int, seed: int) -> float:
    """AdamW on the expert's rank rows under the gate's decisions `data.weights`. Returns the last steps' mean KL.

    `wanted`: `adapter_outputs`, made before the expert changed. All else is frozen.
    """
    model.thaw(expert_id)
    parameters = [p for delta in model.experts[expert_id].values() for p in delta.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    rng = random.Random(seed)
    batches = Batches(len(data), BATCH_SIZE, rng)
    losses: list[float] = []
    with Steps("adapting", steps, "steps") as bar:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * schedule(step, steps)
            loss = divergence(model, data, wanted, batches.draw(), rng)
            if loss is not None:
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
                optimiser.step()
                losses.append(float(loss.detach()))
            bar.advance(f"KL {sum(losses[-10:]) / max(1, len(losses[-10:])):.4f}")
    model.round_as_stored(expert_id)
    model.freeze(expert_id)
    return sum(losses[-10:]) / max(1, len(losses[-10:]))


def divergence(
    model: RoutedModel, data: Prepared, wanted: Sequence[Tensor], batch: list[int], rng: random.Random
) -> Tensor | None:
    """Mean KL(p_adapter ‖ p_expert) over some of the batch's routed tokens, `[]`; None where no token is routed."""
    weights = [data.weights[i] for i in batch]
    places = [(row, t) for row, w in enumerate(weights) for t in w.any(-1).nonzero().flatten().tolist()]
    if not places:
        return None
    places = places if len(places) <= MAX_POSITIONS else rng.sample(places, MAX_POSITIONS)
    rows, positions = torch.tensor(places).unbind(1)
    output = model.forward([data.trunk[i] for i in batch], weights)[rows, positions]
    targets = [wanted[i] for i in batch]
    target = torch.stack([targets[row][t] for row, t in places])
    with torch.no_grad():
        expected = torch.log_softmax(model.backbone.logits(target).float(), dim=-1)
    found = torch.log_softmax(model.backbone.logits(output).float(), dim=-1)
    return nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean")
