"""How well a bank answers and routes: accuracy and routing per task; OP, BWT and FT of the matrix (eq. 15-17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapters.evidence import Gate
from adapters.examples import Prepared
from adapters.nll import answer_logits
from adapters.progress import track
from adapters.routed import RoutedModel

EVAL_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TaskScore:
    """Percent points: `accuracy`: the greedy answer matches; `routing`: the right task leads at the prompt's end."""

    accuracy: float
    routing: float
    num_test: int


@torch.no_grad()
def score_task(model: RoutedModel, gate: Gate, data: Prepared, task: int, what: str) -> TaskScore:
    """Evaluate one task's held-out examples under the gate's own decisions."""
    data.route(gate)
    leads = sum(int(_leader(gate, data, i) == task) for i in range(len(data)))
    return TaskScore(exact_match(model, data, what), 100 * leads / len(data), len(data))


@torch.no_grad()
def exact_match(model: RoutedModel, data: Prepared, what: str) -> float:
    """Share of right answers under the task weights that `data` holds, in percent points.

    An answer is right when every one of its tokens, the end of turn included, is the greedy choice after the ones
    before it: that is exactly when greedy decoding produces it, and it takes one pass.
    """
    right = 0
    for batch in track(data.batches(EVAL_BATCH_TOKENS), f"evaluating {what}", unit="batches"):
        output = model.forward([data.trunk[i] for i in batch], [data.weights[i] for i in batch])
        rows, logits, labels = answer_logits(model, data, batch, output)
        wrong_rows = set(rows[logits.argmax(-1) != labels].tolist())
        right += len(batch) - len(wrong_rows)
    return 100 * right / len(data)


def _leader(gate: Gate, data: Prepared, index: int) -> int:
    """The likeliest of the tasks and base (the last column) at the prompt's last token."""
    at_end = data.pooled[index][len(data.tokens[index].prompt) - 1]
    return int(gate.probabilities(at_end).argmax())


def overall_performance(matrix: Sequence[Sequence[float]]) -> float:
    """OP (eq. 15): the mean of the last row of the accuracy matrix."""
    return sum(matrix[-1]) / len(matrix[-1])


def backward_transfer(matrix: Sequence[Sequence[float]]) -> float:
    """BWT (eq. 16): mean over j < T of `M[T][j] - M[j][j]`; 0 with a single task."""
    last = matrix[-1]
    changes = [last[j] - matrix[j][j] for j in range(len(last) - 1)]
    return sum(changes) / len(changes) if changes else 0.0


def forgetting(matrix: Sequence[Sequence[float]]) -> float:
    """FT (eq. 17): mean over j < T of `max_l M[l][j] - M[T][j]`; 0 with a single task."""
    last = matrix[-1]
    losses = [max(row[j] for row in matrix if j < len(row)) - last[j] for j in range(len(last) - 1)]
    return sum(losses) / len(losses) if losses else 0.0
