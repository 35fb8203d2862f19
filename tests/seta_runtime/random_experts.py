"""Random experts and generations for the tests of the runtime: no disk, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapters.calibrate import softmax_gate
from adapters.evidence import Gate
from adapters.gate import AnalyticGate
from adapters.softmax_gate import SoftmaxGate
from seta_runtime.ops.blocks import SparseBlocks
from seta_runtime.ops.experts import ProjectionExperts, pack, prepared
from seta_runtime.ops.paired import PairedExperts
from seta_runtime.resident import ResidentGeneration

CPU = torch.device("cpu")


def random_blocks(shape: tuple[int, int], count: int, rank: int, size: int, generator: torch.Generator) -> SparseBlocks:
    """`count` different sub-blocks of `W0 [d_out, d_in]`, sorted, with random A and B."""
    rows, columns = shape[0] // size, shape[1] // size
    chosen = torch.randperm(rows * columns, generator=generator)[:count].sort().values
    blocks = torch.stack([chosen // columns, chosen % columns], dim=1).to(torch.int32)
    a = torch.randn(len(blocks), rank, size, generator=generator) / size**0.5
    return SparseBlocks(blocks, a, torch.randn(len(blocks), size, rank, generator=generator))


def random_experts(
    shape: tuple[int, int], counts: Sequence[int], ranks: Sequence[int], size: int = 8, seed: int = 0
) -> list[SparseBlocks | None]:
    """One projection's experts: expert e has `counts[e]` sub-blocks of rank `ranks[e]`, none at all where that is 0."""
    generator = torch.Generator().manual_seed(seed)
    return [
        random_blocks(shape, count, rank, size, generator) if count else None
        for count, rank in zip(counts, ranks, strict=True)
    ]


def packed_in_bfloat16(
    experts: Sequence[SparseBlocks | None],
    members: Sequence[Sequence[int]],
    shape: tuple[int, int],
    with_mixtures: bool = False,
) -> PairedExperts | ProjectionExperts:
    """As a generation is loaded: each expert by itself, then a projection's together."""
    ready = [None if one is None else prepared(one, torch.bfloat16, CPU, with_mixtures) for one in experts]
    return pack(ready, members, shape, torch.bfloat16, CPU, with_mixtures)


def random_gate(hidden: int, width: int, num_tasks: int, *, seed: int = 0, keep: int = 1) -> AnalyticGate:
    """A gate whose tasks lie in random directions, so that random tokens go to all of them and to base."""
    generator = torch.Generator().manual_seed(seed)
    projection = torch.linalg.qr(torch.randn(hidden, width, generator=generator)).Q.contiguous()
    return AnalyticGate(
        projection=projection,
        content_weight=torch.randn(hidden, generator=generator) / hidden**0.5,
        content_bias=torch.tensor([0.5]),
        base_mean=torch.zeros(width),
        base_whitener=torch.eye(width),
        count=torch.full((num_tasks,), 10.0),
        mean=torch.randn(num_tasks, width, generator=generator),
        scatter=torch.eye(width) * 5 * max(num_tasks, 1),
        threshold=torch.tensor([0.2]),
        sharpness=torch.tensor([20.0]),
        temperature=torch.tensor([1.0]),
        ridge=torch.tensor([0.05]),
        keep=torch.tensor([float(keep)]),
    )


def random_softmax_gate(hidden: int, width: int, membership: Tensor, *, seed: int = 0, keep: int = 2) -> SoftmaxGate:
    """A gate over experts, whose rows lie in random directions."""
    fixed = random_gate(hidden, width, 0, seed=seed, keep=keep)
    generator = torch.Generator().manual_seed(seed + 1)
    num_experts = membership.shape[1]
    return replace(
        softmax_gate(fixed),
        membership=membership.float(),
        weight=4 * torch.randn(num_experts + 1, width, generator=generator),
        bias=torch.zeros(num_experts + 1),
    )


def random_generation(adapter_id: int, gate: Gate, membership: Tensor) -> ResidentGeneration:
    """A generation of `membership [tasks, experts]` without projections: all that the router needs."""
    tasks = tuple(f"task{i}" for i in range(membership.shape[0]))
    experts = tuple(f"expert{i}" for i in range(membership.shape[1]))
    return ResidentGeneration(adapter_id, adapter_id, tasks, experts, membership.float(), gate, {})
