"""What a model with experts makes of a batch's answers: their logits, and the loss (the NLL of eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from adapters.examples import Prepared
from adapters.routed import RoutedModel


def answer_nll(model: RoutedModel, data: Prepared, batch: Sequence[int], weights: Sequence[Tensor]) -> Tensor:
    """Sum of the negative log-likelihoods of the answers' tokens, from cached trunk outputs."""
    return nll_of(model, data, batch, model.forward([data.trunk[i] for i in batch], weights))


def nll_of(model: RoutedModel, data: Prepared, batch: Sequence[int], output: Tensor) -> Tensor:
    """The same of a last output `[B, T, d]`."""
    _, logits, labels = answer_logits(model, data, batch, output)
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


def answer_logits(
    model: RoutedModel, data: Prepared, batch: Sequence[int], output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `[n]`, logits `[n, vocab]` and labels `[n]` of the answers' tokens; no other logits are computed."""
    rows, positions, labels = data.targets(batch)
    return rows, model.backbone.logits(output[rows, positions]), labels
