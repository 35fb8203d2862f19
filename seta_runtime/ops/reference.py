"""The slow, obvious form of the routed update; every other path is tested against it."""

from __future__ import annotations

from torch import Tensor

from seta_runtime.ops.experts import ProjectionExperts


def routed_sparse_lora(x: Tensor, experts: ProjectionExperts, gates: Tensor) -> Tensor:
    """`((x Aᵀ) ⊙ gates[:, rank_expert]) B` (eq. 14 without `W0 x`).

    x `[n, d_in]`, gates `[n, experts]`; returns `[n, d_out]` float32. The caller adds it to the base output.
    """
    shrunk = x.float() @ experts.a.float().T
    return (shrunk * gates[:, experts.rank_expert].float()) @ experts.b.float()
