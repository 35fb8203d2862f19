"""The training-side routed sparse-LoRA layer.

    y = W0 x + sum_e g_e ΔW_e x,    ΔW_e[block b] = B_b A_b                                      (eq. 14)

An expert holds a low-rank delta on its own sub-blocks of the `l x l` grid of W0 `[d_out, d_in]`, nothing elsewhere.
While it trains, its delta is assembled densely once per step: for one expert that costs less than gathering the blocks
of every token. `seta_runtime` computes the same sum for many experts at once; `tests/seta_runtime/test_ops.py` compares
the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Blocks = Tensor
"""`[n, 2]` int32: (row, column) of each sub-block in the grid, sorted."""


@dataclass
class Gates:
    """The per-token expert gates of the current forward pass, set once for the whole stack: id → `[B, T]` float32."""

    by_expert: dict[str, Tensor] = field(default_factory=dict)


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

    def dense(self) -> Tensor:
        """ΔW `[d_out, d_in]`, differentiable."""
        size = self.a.shape[-1]
        rows, columns = self.shape[0] // size, self.shape[1] // size
        index = self.blocks[:, 0] * columns + self.blocks[:, 1]
        grid = torch.zeros(rows * columns, size, size, dtype=self.a.dtype).index_copy(
            0, index, torch.bmm(self.b, self.a)
        )
        return grid.view(rows, columns, size, size).permute(0, 2, 1, 3).reshape(self.shape)


class RoutedLinear(nn.Module):
    """A frozen projection plus the gated deltas of the experts that have blocks in it."""

    def __init__(self, base: nn.Linear, gates: Gates) -> None:
        super().__init__()
        self.base = base
        self.gates = gates
        self.deltas: dict[str, SparseDelta] = {}
        self._frozen: dict[str, Tensor] = {}

    def add(self, expert_id: str, delta: SparseDelta) -> None:
        self.deltas[expert_id] = delta
        self._frozen.pop(expert_id, None)

    def freeze(self, expert_id: str) -> None:
        """Isolation (eq. 8): an earlier expert gets no gradient; its dense delta is kept, not rebuilt each step."""
        delta = self.deltas[expert_id].requires_grad_(False)
        self._frozen[expert_id] = delta.dense().to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for expert_id, delta in self.deltas.items():
            gate = self.gates.by_expert.get(expert_id)
            if gate is None:
                continue
            weight = self._frozen.get(expert_id)
            if weight is None:
                weight = delta.dense().to(x.dtype)
            y = y + nn.functional.linear(x, weight) * gate.unsqueeze(-1).to(x.dtype)
        return y
