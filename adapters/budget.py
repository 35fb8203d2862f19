"""How many sub-blocks a task may take, and which: `N_base`, per-layer quotas, and selection past `N_base`.

The paper gives no numeric rule for the last; ours is `stable_length`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from adapters.blocks import Block, Site, ranked

WINDOWS = 8
"""The share of new blocks is watched over windows of `N_base / WINDOWS` blocks."""
TOLERANCE = 0.1
"""It is stable when two windows in a row differ by no more than this share."""


def coverage(num_blocks: Mapping[int, int], held: Collection[Block]) -> dict[int, float]:
    """Share of each layer's blocks that earlier tasks hold."""
    counts = dict.fromkeys(num_blocks, 0)
    for layer, *_ in held:
        counts[layer] += 1
    return {layer: counts[layer] / count for layer, count in num_blocks.items()}


def layer_quotas(num_blocks: dict[int, int], coverage: dict[int, float], density: float) -> dict[int, int]:
    """How many blocks each layer may take of `N_base = floor(density · |B|)`: in inverse proportion to `1 + coverage`,
    the share of its blocks that earlier tasks hold. Largest remainders round it; no layer gets more than it has, or
    less than one.
    """
    total = int(density * sum(num_blocks.values()))
    weights = {layer: count / (1 + coverage.get(layer, 0.0)) for layer, count in num_blocks.items()}
    exact = _shares(total, weights, num_blocks)
    quotas = {layer: max(1, int(value)) for layer, value in exact.items()}
    by_remainder = sorted(exact, key=lambda layer: (int(exact[layer]) - exact[layer], layer))
    for layer in by_remainder:
        if sum(quotas.values()) >= total:
            break
        quotas[layer] = min(quotas[layer] + 1, num_blocks[layer])
    return quotas


def _shares(total: int, weights: dict[int, float], most: dict[int, int]) -> dict[int, float]:
    """`total` in proportion to the weights; what is more than a layer's `most` goes to the others."""
    shares: dict[int, float] = {}
    left = dict(weights)
    while left:
        scale = (total - sum(shares.values())) / sum(left.values())
        full = [layer for layer, weight in left.items() if weight * scale >= most[layer]]
        if not full:
            return shares | {layer: weight * scale for layer, weight in left.items()}
        shares |= {layer: float(most[layer]) for layer in full}
        left = {layer: weight for layer, weight in left.items() if layer not in shares}
    return shares


def select(scores: Mapping[Site, Tensor], quotas: Mapping[int, int]) -> list[Block]:
    """The best-scored blocks of each layer, `quotas[layer]` of them; best first."""
    left = dict(quotas)
    chosen = []
    for block in ranked(scores):
        if left.get(block[0], 0) > 0:
            left[block[0]] -= 1
            chosen.append(block)
    return chosen


def select_past_quotas(
    scores: Mapping[Site, Tensor], quotas: Mapping[int, int], held: Collection[Block]
) -> list[Block]:
    """`select`, then the best of what is left until the rate of blocks that no earlier task holds is stable."""
    first = select(scores, quotas)
    taken = set(first)
    order = [*first, *(block for block in ranked(scores) if block not in taken)]
    return order[: stable_length([block not in held for block in order], len(first))]


def stable_length(is_new: Sequence[bool], base: int) -> int:
    """How many blocks of an order to take: at least `base`, then window by window until the rate of new ones is stable.

    Stable: the share of `is_new` in the last window of `base / WINDOWS` blocks differs from the share in the window
    before it by at most `TOLERANCE`. Where every block is new, as in a first task, that holds at `base`.
    """
    window = max(1, base // WINDOWS)
    length = base
    while length < len(is_new):
        last, before = is_new[max(0, length - window) : length], is_new[max(0, length - 2 * window) : length - window]
        if before and abs(sum(last) / len(last) - sum(before) / len(before)) <= TOLERANCE:
            break
        length = min(length + window, len(is_new))
    return length
