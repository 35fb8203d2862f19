"""The trunk's output for many sequences, computed once each: what the gate reads and what training starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.progress import track
from adapters.trunk_cache import TrunkCache, TrunkMemory

BATCH_TOKENS = 2048


@torch.no_grad()
def trunk_outputs(
    backbone: Backbone,
    sequences: Sequence[list[int]],
    trunk_layers: int,
    what: str,
    memory: TrunkMemory | None = None,
) -> TrunkCache:
    """Per sequence of token ids, the residual stream that enters layer `trunk_layers`: `[T, d]`, the model's dtype.

    What does not fit into `memory` is kept on disk. Raises TrunkCacheError where that has no room either.
    """
    lengths = [len(s) for s in sequences]
    hidden_size = backbone.model.config.hidden_size
    outputs = TrunkCache(lengths, hidden_size, backbone.dtype, memory or TrunkMemory())
    batches = list(batches_by_length(lengths, BATCH_TOKENS))
    for batch in track(batches, f"trunk of {what}", unit="batch"):
        hidden = backbone.run(backbone.embed(pad_ids([sequences[i] for i in batch])), 0, trunk_layers)
        for row, index in enumerate(batch):
            outputs.put(index, hidden[row, : lengths[index]])
    return outputs


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, of at most `batch_tokens` tokens with padding; a longer one is alone."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[index] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_ids(sequences: Sequence[list[int]]) -> Tensor:
    """`[B, T]`, padded on the right with token 0: under a causal mask no real token sees it."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids


def pad_hidden(outputs: Sequence[Tensor]) -> Tensor:
    """`[B, T, d]`, padded on the right with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(outputs), batch_first=True)
