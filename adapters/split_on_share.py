"""Split-on-Share: which blocks of the earlier experts a new task shares (eq. 6, 7). Functions on sets of blocks.

Per decoder layer, for every earlier expert with blocks `P_old` and a new task with blocks `P_t`:

    I = P_old ∩ P_t,  R = P_old minus P_t
    |I| < tau_ect        → nothing is shared:      R = P_old,  I = ∅
    0 < |R| < tau_trt    → the rest is shared too:  I = P_old,  R = ∅

`I` becomes a shared expert with the old weights, `R` stays the old expert. Whatever of `P_t` no expert holds becomes
the new task's own. The paper states it for the one expert before; here every earlier expert, unique or shared, is
split, so every block belongs to exactly one expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.blocks import Block

Blocks = frozenset[Block]


@dataclass(frozen=True)
class Split:
    """`shared`, `remainder`: per earlier expert, what the new task shares of it, what stays; `own`: the new task's."""

    shared: Mapping[str, Blocks]
    remainder: Mapping[str, Blocks]
    own: Blocks

    @property
    def parts(self) -> dict[str, Blocks]:
        """`shared`, of the experts alone that share anything."""
        return {expert_id: blocks for expert_id, blocks in self.shared.items() if blocks}


def split_layer(old: Blocks, new: Blocks, share_at_least: int, keep_at_least: int) -> tuple[Blocks, Blocks]:
    """`(I, R)` of one expert in one layer; `share_at_least` is tau_ect, `keep_at_least` tau_trt (eq. 6, 7)."""
    shared, remainder = old & new, old - new
    if not shared or len(shared) < share_at_least:
        return frozenset(), old
    if 0 < len(remainder) < keep_at_least:
        return old, frozenset()
    return shared, remainder


def split_on_share(experts: Mapping[str, Blocks], new: Blocks, share_at_least: int, keep_at_least: int) -> Split:
    """Split every earlier expert, layer by layer."""
    shared: dict[str, Blocks] = {}
    remainder: dict[str, Blocks] = {}
    for expert_id, old in experts.items():
        parts = [split_layer(in_layer, new, share_at_least, keep_at_least) for in_layer in _by_layer(old).values()]
        shared[expert_id] = frozenset().union(*(part for part, _ in parts))
        remainder[expert_id] = frozenset().union(*(part for _, part in parts))
    held = frozenset().union(*experts.values())
    return Split(shared, remainder, new - held)


def shared_id(tasks: Sequence[str]) -> str:
    """The id of the expert that exactly these tasks share, oldest first; bounded however many they are.

    A set of tasks has at most one shared expert: it can only come from splitting the expert of all but the newest.
    """
    digest = hashlib.sha256("\n".join(tasks).encode()).hexdigest()[:12]
    return f"{tasks[0]}.shared.{digest}"


def _by_layer(blocks: Blocks) -> dict[int, Blocks]:
    layers: dict[int, set[Block]] = {}
    for block in blocks:
        layers.setdefault(block[0], set()).add(block)
    return {layer: frozenset(found) for layer, found in layers.items()}
