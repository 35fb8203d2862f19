"""The slow, obvious form of the routed update; every other path is tested against it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from seta_runtime.ops.blocks import SparseBlocks


def routed_sparse_lora(x: Tensor, experts: Sequence[SparseBlocks | None], gates: Tensor, num_outputs: int) -> Tensor:
    """eq. 14 without `W0 x`: every block of every expert on its own columns and rows, weighted with the expert's gate.

    x `[n, d_in]`, gates `[n, experts]`; returns `[n, num_outputs]` float32. The caller adds it to the base output.
    """
    update = x.new_zeros(len(x), num_outputs).float()
    for gate, expert in zip(gates.float().T, experts, strict=True):
        if expert is None:
            continue
        size = expert.a.shape[-1]
        for (row, column), a, b in zip(expert.blocks.tolist(), expert.a.float(), expert.b.float(), strict=True):
            shrunk = x[:, column * size : (column + 1) * size].float() @ a.T
            update[:, row * size : (row + 1) * size] += gate.unsqueeze(1) * (shrunk @ b.T)
    return update
