"""A task's examples, ready to train on: token ids, the trunk's output, the gate's decisions. Each is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.calibrate import MIN_CONTENT_TOKENS
from adapters.data import DataError, Example, Tokens, render
from adapters.gate import LOG_WEIGHT_FLOOR, AnalyticGate
from adapters.routed import pool
from adapters.trunk import batches_by_length, trunk_outputs


@dataclass
class Prepared:
    """`tokens[i]`, `trunk[i] [T_i, d]`, `pooled[i] [T_i, c]`, and, once a gate is chosen, `weights[i] [T_i, tasks]`.

    Trunk outputs stop one token early: the last answer token predicts nothing.
    """

    tokens: list[Tokens]
    trunk: list[Tensor]
    pooled: list[Tensor]
    weights: list[Tensor]

    def route(self, gate: AnalyticGate) -> None:
        """Take the gate's decisions for every token of every example."""
        self.weights = [gate.decide(pooled) for pooled in self.pooled]

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
        return list(batches_by_length([len(t) for t in self.trunk], batch_tokens))


def prepare(
    backbone: Backbone, examples: Sequence[Example], trunk_layers: int, gate: AnalyticGate, max_tokens: int, what: str
) -> tuple[Prepared, int]:
    """Render and run the trunk. Also returns how many examples were too long. Raises DataError if none is left."""
    rendered = [render(backbone.tokenizer, example, max_tokens) for example in examples]
    tokens = [t for t in rendered if t is not None]
    if not tokens:
        raise DataError(f"{what}: every example is longer than {max_tokens} tokens; raise max_tokens or shorten them")
    trunk = trunk_outputs(backbone, [t.ids[:-1] for t in tokens], trunk_layers, what)
    return Prepared(tokens, trunk, [pool(gate, h) for h in trunk], []), len(rendered) - len(tokens)


def gate_samples(gate: AnalyticGate, prepared: Prepared) -> Tensor:
    """Prefix means that describe the task to the gate: `[n, c]`, all positions past the first few content tokens."""
    samples = []
    for trunk, pooled in zip(prepared.trunk, prepared.pooled, strict=True):
        _, log_weight = gate.evidence(trunk)
        content = (1 - log_weight / LOG_WEIGHT_FLOOR).cumsum(0)
        enough = content > MIN_CONTENT_TOKENS
        samples.append(pooled[enough] if bool(enough.any()) else pooled[-1:])
    return torch.cat(samples)
