"""Tensor parallelism: which part of a projection, and of the gate's evidence, one of several ranks holds.

Every rank computes the same evidence from the same residual stream, pools its own heads' part of it, gets the others'
parts, and so takes the same decision; each routed projection then adds what belongs to its own shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adapters.bank import BaseModelInfo

INPUT_SHARDED = ("o_proj", "down_proj")
"""Targets whose inputs are spread over the ranks: each has a part of the sum."""


@dataclass(frozen=True)
class Part:
    """The rows (outputs) and columns (inputs) of W0 that a rank holds."""

    rows: range
    columns: range

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `size`. `gather`: concatenates every rank's `[T, n]` along the last axis, in rank order;
    `add`: sums every rank's tensor. Neither is called where there is one rank."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    add: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def part(self, base: BaseModelInfo, target: str) -> Part:
        """What this rank holds of `target`, as the engine spreads it; too few k and v heads are repeated."""
        num_rows, num_columns = base.target_dims(target)  # type: ignore[arg-type]
        if target in INPUT_SHARDED:
            return Part(range(num_rows), self._share(num_columns))
        if target in ("k_proj", "v_proj") and base.num_kv_heads < self.size:
            first = self.rank * base.num_kv_heads // self.size * base.head_size
            return Part(range(first, first + base.head_size), range(num_columns))
        return Part(self._share(num_rows), range(num_columns))

    def _share(self, count: int) -> range:
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)


ALONE = Ranks()
