"""The training-side routed sparse-LoRA layer.

    y = W0 x + sum_e g_e ΔW_e x,    ΔW_e[block b] = B_b A_b                                      (eq. 14)

An expert holds a low-rank delta on its own sub-blocks of the `l x l` grid of W0 `[d_out, d_in]`, nothing elsewhere.
Deltas are assembled once per step, for all tokens (`delta_product.py`). `seta_runtime` computes the same sum for many
experts at once; `tests/seta_runtime/test_ops.py` compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapters.delta_product import DeltaProduct, delta_product, dense_delta

Blocks = Tensor
"""`[n, 2]` int32: (row, column) of each sub-block in the grid, sorted."""


@dataclass
class Gates:
    """The gates of the current forward pass, set once for the whole stack.

    Sets of experts that have one gate in common, as a task's have, with that gate: `[B, T]` float32.
    """

    active: list[tuple[tuple[str, ...], Tensor]] = field(default_factory=list)


class SparseDelta(nn.Module):
    """One expert's delta on one projection: `A [n, r, l]`, `B [n, l, r]` on the sub-blocks `blocks [n, 2]`."""

    blocks: Tensor

    def __init__(self, blocks: Blocks, a: Tensor, b: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("blocks", blocks.long(), persistent=False)
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)

    @classmethod
    def fresh(
        cls, blocks: Blocks, rank: int, size: int, shape: tuple[int, int], generator: torch.Generator
    ) -> SparseDelta:
        """A ~ U(-1/sqrt(l), 1/sqrt(l)), B = 0: the delta starts at zero, as in LoRA."""
        a = (torch.rand(len(blocks), rank, size, generator=generator) * 2 - 1) / math.sqrt(size)
        return cls(blocks, a, torch.zeros(len(blocks), size, rank), shape)

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def take(self, chosen: Blocks) -> SparseDelta:
        """The rows of some of its blocks, the very same values; `chosen [m, 2]` in order, each one held here."""
        place = {tuple(block): row for row, block in enumerate(self.blocks.tolist())}
        rows = torch.tensor([place[tuple(block)] for block in chosen.tolist()])
        return SparseDelta(chosen, self.a.detach()[rows], self.b.detach()[rows], self.shape)

    def without(self, chosen: Blocks | None) -> SparseDelta | None:
        """What `take(chosen)` leaves; None if that is nothing."""
        taken = set() if chosen is None else {tuple(block) for block in chosen.tolist()}
        left = [block for block in self.blocks.tolist() if tuple(block) not in taken]
        return self.take(torch.tensor(left, dtype=torch.int32)) if left else None

    def products(self) -> Tensor:
        """`B_b A_b` of every block, `[n, l, l]`, differentiable."""
        return torch.bmm(self.b, self.a)

    def dense(self) -> Tensor:
        """ΔW `[d_out, d_in]`, differentiable."""
        return dense_delta(self.blocks, self.products(), self.shape)


class RoutedLinear(nn.Module):
    """A frozen projection plus the gated deltas of the experts that have blocks in it."""

    def __init__(self, base: nn.Linear, gates: Gates) -> None:
        super().__init__()
        self.base = base
        self.gates = gates
        self.deltas: dict[str, SparseDelta] = {}
        self._frozen: set[str] = set()
        self._merged: dict[tuple[str, ...], DeltaProduct] = {}

    def add(self, expert_id: str, delta: SparseDelta) -> None:
        self._forget(expert_id)
        self.deltas[expert_id] = delta

    def remove(self, expert_id: str) -> None:
        self._forget(expert_id)
        del self.deltas[expert_id]

    def stay_eager(self) -> None:
        """Never be compiled with the layer around: experts and gates change from batch to batch and task to task."""
        self.forward = torch.compiler.disable(self.forward)  # type: ignore[method-assign]

    def thaw(self, expert_id: str) -> None:
        """Let an expert learn again."""
        self._forget(expert_id)
        self.deltas[expert_id].requires_grad_(True)

    def freeze(self, expert_id: str) -> None:
        """Isolation (eq. 8): an earlier expert gets no gradient, and is assembled once, not at each step."""
        self._forget(expert_id)
        self.deltas[expert_id].requires_grad_(False)
        self._frozen.add(expert_id)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for expert_ids, gate in self.gates.active:
            mine = tuple(expert_id for expert_id in expert_ids if expert_id in self.deltas)
            if mine:
                y = y + self.product_of(mine)(x) * gate.unsqueeze(-1).to(x.dtype)
        return y

    def product_of(self, expert_ids: tuple[str, ...]) -> DeltaProduct:
        """The sum of some experts' deltas in the base's dtype, kept if all of them are frozen."""
        if expert_ids in self._merged:
            return self._merged[expert_ids]
        deltas = [self.deltas[expert_id] for expert_id in expert_ids]
        product = delta_product(
            [delta.blocks for delta in deltas],
            [delta.products() for delta in deltas],
            deltas[0].shape,
            self.base.weight.dtype,
        )
        if self._frozen.issuperset(expert_ids):
            self._merged[expert_ids] = product
        return product

    def _forget(self, expert_id: str) -> None:
        self._frozen.discard(expert_id)
        self._merged = {ids: weight for ids, weight in self._merged.items() if expert_id not in ids}
