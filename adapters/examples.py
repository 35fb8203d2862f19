"""A task's examples, ready to train on: token ids, the trunk's output, the gate's decisions. Each is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import overload

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.calibrate import MIN_CONTENT_TOKENS
from adapters.data import DataError, Example, Tokens, render
from adapters.evidence import LOG_WEIGHT_FLOOR, Gate
from adapters.routed import pool
from adapters.trunk import batches_by_length, trunk_outputs
from adapters.trunk_cache import TrunkMemory

SHOWN_PLACES = 5
MAX_GATE_SAMPLES = 1 << 17


class Derived(Sequence[Tensor]):
    """`function(source[i])`, computed each time it is asked for: cheap next to a training step, and nothing is kept."""

    def __init__(self, source: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> None:
        self.source, self.function = source, function

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.function(self.source[index])


@dataclass
class Prepared:
    """`tokens[i]`, `trunk[i] [T_i, d]`, `pooled[i] [T_i, c]`, and, once a gate is chosen, `weights[i] [T_i, columns]`.

    Trunk outputs stop one token early: the last answer token predicts nothing. Of the tensors only the trunk's outputs
    are kept, in bounded memory; the others are computed from them when they are asked for. `too_long`: where the
    examples are that did not fit.
    """

    tokens: list[Tokens]
    trunk: Sequence[Tensor]
    pooled: Sequence[Tensor]
    weights: Sequence[Tensor]
    too_long: list[str] = field(default_factory=list)

    def route(self, gate: Gate) -> None:
        """Take the gate's decisions for every token of every example."""
        self.weights = Derived(self.pooled, gate.decide)

    def __len__(self) -> int:
        return len(self.tokens)

    def targets(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Row and position of each state in a batch that predicts an answer token; that token: three `[n]` int64."""
        rows: list[int] = []
        positions: list[int] = []
        labels: list[int] = []
        for row, index in enumerate(indices):
            prompt, answer = self.tokens[index].prompt, self.tokens[index].answer
            rows += [row] * len(answer)
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            labels += answer
        return torch.tensor(rows), torch.tensor(positions), torch.tensor(labels)

    def batches(self, batch_tokens: int) -> list[list[int]]:
        return list(batches_by_length([len(t.ids) - 1 for t in self.tokens], batch_tokens))


def prepare(
    backbone: Backbone,
    examples: Sequence[Example],
    trunk_layers: int,
    gate: Gate,
    max_tokens: int,
    what: str,
    memory: TrunkMemory | None = None,
) -> tuple[Prepared, int]:
    """Render and run the trunk. Also returns how many examples were too long.

    Raises DataError if none is left, TrunkCacheError if there is no room for the trunk's outputs.
    """
    tokens, too_long = render_all(backbone, examples, max_tokens, what)
    data = prepare_tokens(backbone, tokens, trunk_layers, gate, what, memory)
    data.too_long = too_long
    return data, len(too_long)


def prepare_tokens(
    backbone: Backbone,
    tokens: list[Tokens],
    trunk_layers: int,
    gate: Gate,
    what: str,
    memory: TrunkMemory | None = None,
) -> Prepared:
    """Run the trunk over examples that are rendered already. Raises TrunkCacheError if there is no room for that."""
    trunk = trunk_outputs(backbone, [t.ids[:-1] for t in tokens], trunk_layers, what, memory)
    return Prepared(tokens, trunk, Derived(trunk, partial(pool, gate)), [])


def render_all(
    backbone: Backbone, examples: Sequence[Example], max_tokens: int, what: str
) -> tuple[list[Tokens], list[str]]:
    """The examples that fit into `max_tokens` and into the model's context, and where the others are.

    Raises DataError if none is left, or one cannot be rendered.
    """
    limit = min(max_tokens, backbone.context_tokens)
    rendered = [(example.where, render(backbone.tokenizer, example, limit)) for example in examples]
    tokens = [found for _, found in rendered if found is not None]
    too_long = [where for where, found in rendered if found is None]
    if not tokens:
        whose = "max_tokens" if limit == max_tokens else "the model's context"
        raise DataError(
            f"{what}: every example is longer than {limit} tokens ({whose}), {places(too_long)}; "
            f"{'raise max_tokens or ' if limit == max_tokens else ''}shorten them"
        )
    return tokens, too_long


def places(where: Sequence[str]) -> str:
    """The first few of a list of places, and how many more there are."""
    more = [f"{len(where) - SHOWN_PLACES} more"] if len(where) > SHOWN_PLACES else []
    return ", ".join([*where[:SHOWN_PLACES], *more])


def gate_samples(gate: Gate, prepared: Prepared) -> Tensor:
    """Prefix means that describe the task to the gate: `[n, c]`, all positions past the first few content tokens.

    Of a large data set every k-th of them, so that there are at most `MAX_GATE_SAMPLES`.
    """
    every = -(-sum(len(tokens.ids) - 1 for tokens in prepared.tokens) // MAX_GATE_SAMPLES)
    samples, seen = [], 0
    for trunk, pooled in zip(prepared.trunk, prepared.pooled, strict=True):
        _, log_weight = gate.evidence(trunk)
        content = (1 - log_weight / LOG_WEIGHT_FLOOR).cumsum(0)
        enough = content > MIN_CONTENT_TOKENS
        found = pooled[enough] if bool(enough.any()) else pooled[-1:]
        samples.append(found[-seen % every :: every].clone())
        seen += len(found)
    return torch.cat(samples)
