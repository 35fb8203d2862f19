"""Greedy decoding of one prompt with a routed model: what the serving engine does, in its plainest form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from adapters.routed import RoutedModel


class Router(Protocol):
    """What decoding needs of a gate."""

    @property
    def width(self) -> int: ...
    def evidence(self, hidden: Tensor) -> tuple[Tensor, Tensor]: ...
    def decide(self, pooled: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Always:
    """Routes every token to one of `num_tasks` tasks: an expert without its gate, as a plain LoRA is used."""

    task: int
    num_tasks: int
    width: int = 1

    def evidence(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden.new_zeros(*hidden.shape[:-1], 1).float(), hidden.new_zeros(hidden.shape[:-1]).float()

    def decide(self, pooled: Tensor) -> Tensor:
        weights = torch.zeros(*pooled.shape[:-1], self.num_tasks)
        weights[..., self.task] = 1
        return weights


@dataclass(frozen=True)
class Generated:
    """`tokens`: the answer, its end-of-turn token included if it came. `logprobs [n, vocab]`: what each was taken from.

    `pooled [T, c]`: the gate's prefix mean at every position that was run, prompt and answer but for the last token;
    empty without a gate.
    """

    tokens: list[int]
    logprobs: Tensor
    pooled: Tensor


class PrefixPool:
    """`adapters.gate.prefix_mean` for a sequence that arrives in pieces: two running sums."""

    def __init__(self, gate: Router) -> None:
        self.gate = gate
        self.weighted_sum = torch.zeros(gate.width)
        self.weight_sum = torch.zeros(1)

    def extend(self, trunk: Tensor) -> Tensor:
        """The next tokens' trunk outputs `[n, d]` → prefix means `[n, c]`, rounded as `adapters.routed.pool` does."""
        z, log_weight = self.gate.evidence(trunk)
        weight = log_weight.to(trunk.dtype).float().exp().unsqueeze(-1)
        sums = self.weighted_sum + (z.to(trunk.dtype).float() * weight).cumsum(0)
        weights = self.weight_sum + weight.cumsum(0)
        self.weighted_sum, self.weight_sum = sums[-1], weights[-1]
        return sums / weights


@torch.no_grad()
def generate(model: RoutedModel, gate: Router | None, prompt: list[int], max_tokens: int) -> Generated:
    """The greedy answer to a prompt of token ids under the gate's own decisions; without a gate, the base model's."""
    cache = DynamicCache()
    pool = None if gate is None else PrefixPool(gate)
    tokens: list[int] = []
    logprobs: list[Tensor] = []
    pooled: list[Tensor] = []
    piece, offset = prompt, 0
    while True:
        hidden, means = _run(model, pool, piece, offset, cache)
        pooled += [] if means is None else [means]
        offset += len(piece)
        logprobs.append(torch.log_softmax(model.backbone.logits(hidden[-1]).float(), dim=-1))
        piece = [int(logprobs[-1].argmax())]
        tokens += piece
        if len(tokens) == max_tokens or piece[0] in model.backbone.eos_ids:
            return Generated(tokens, torch.stack(logprobs), torch.cat(pooled) if pooled else torch.empty(0, 0))


def _run(
    model: RoutedModel, pool: PrefixPool | None, ids: list[int], offset: int, cache: DynamicCache
) -> tuple[Tensor, Tensor | None]:
    """One forward pass of the tokens at positions `offset...`: the last layer's output `[n, d]`, the prefix means."""
    backbone, trunk_layers = model.backbone, model.trunk_layers
    trunk = backbone.run(backbone.embed(torch.tensor([ids])), 0, trunk_layers, cache, offset)
    means = None
    model.gates.active = []
    if pool is not None:
        means = pool.extend(trunk[0])
        model.route(pool.gate.decide(means).unsqueeze(0))
    return backbone.run(trunk, trunk_layers, backbone.num_layers, cache, offset)[0], means
