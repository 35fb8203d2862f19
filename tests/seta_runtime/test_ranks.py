"""Tensor parallelism without an engine: the shards of all ranks are the whole, in every part of the routed layer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seta_runtime.layer import OutputSlice, RoutedProjection
from seta_runtime.ops.experts import pack
from seta_runtime.ranks import INPUT_SHARDED, Ranks
from seta_runtime.route import PoolShape, Router
from seta_runtime.state import RoutedGroup, StepState
from seta_runtime.stats import RoutingStats
from tests.adapters.bank import factory
from tests.seta_runtime.random_experts import CPU, random_blocks, random_gate, random_generation

BASE = factory.BASE.model_copy(update={"hidden_size": 32, "intermediate_size": 48, "head_size": 8})
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_the_ranks_parts_are_the_whole_matrix(target: str, size: int) -> None:
    """Once each, but for k and v heads where there are fewer of them than ranks."""
    shape = BASE.target_dims(target)  # type: ignore[arg-type]
    parts = [Ranks(rank, size).part(BASE, target) for rank in range(size)]
    times = torch.zeros(shape)
    for part in parts:
        times[part.rows.start : part.rows.stop, part.columns.start : part.columns.stop] += 1
    repeats = max(1, size // BASE.num_kv_heads) if target in ("k_proj", "v_proj") else 1
    assert (times == repeats).all()
    assert all(len(part.columns) == shape[1] or target in INPUT_SHARDED for part in parts)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 12),
    rank=st.integers(1, 5),
    rows=st.tuples(st.integers(0, 12), st.integers(1, 12)),
    columns=st.tuples(st.integers(0, 16), st.integers(1, 16)),
    seed=st.integers(0, 1000),
)
def test_a_cut_is_that_part_of_the_delta(
    count: int, rank: int, rows: tuple[int, int], columns: tuple[int, int], seed: int
) -> None:
    """Through blocks, too: edges of any multiple of 2 in blocks of 8."""
    shape = (24, 32)
    blocks = random_blocks(shape, count, rank, 8, torch.Generator().manual_seed(seed))
    row, column = (
        range(2 * start, min(2 * (start + n), end)) for (start, n), end in zip((rows, columns), shape, strict=True)
    )
    if not row or not column:
        return
    expected = blocks.dense(shape)[row.start : row.stop, column.start : column.stop]
    cut = blocks.cut(row, column)
    got = torch.zeros_like(expected) if cut is None else cut.dense((len(row), len(column)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("target", ["v_proj", "down_proj"])
def test_updates_of_all_ranks_are_one_ranks_update(target: str, size: int) -> None:
    """Outputs side by side where outputs are spread, summed over the ranks where inputs are."""
    shape = BASE.target_dims(target)  # type: ignore[arg-type]
    blocks = random_blocks(shape, 3, 2, 8, torch.Generator().manual_seed(1))
    x, rows = torch.randn(5, shape[1]), torch.tensor([0, 2, 3])
    expected = torch.zeros(5, shape[0])
    expected[rows] = x[rows] @ blocks.dense(shape).T
    partials: list[Tensor] = []
    outputs = []
    for rank in range(size):
        ranks = Ranks(rank, size, add=partial(_noted, partials))
        part = ranks.part(BASE, target)
        cut = blocks.cut(part.rows, part.columns)
        generation = replace(
            random_generation(1, random_gate(8, 4, 1), torch.ones(1, 1)),
            projections={} if cut is None else {(0, target): pack([cut], [[0]], part.shape, torch.float32, CPU)},
        )
        state = StepState([generation], groups=[RoutedGroup(generation, rows, 0, None)])
        base = nn.Linear(len(part.columns), len(part.rows), bias=False)
        nn.init.zeros_(base.weight)
        is_partial = target in INPUT_SHARDED
        layer = RoutedProjection(base, state, [OutputSlice(0, target, 0, len(part.rows), is_partial)], ranks)
        outputs.append((part, layer(x[:, part.columns.start : part.columns.stop]).detach()))
    if target in INPUT_SHARDED:
        assert len(partials) == size  # every rank takes part in the sum, also one without blocks
        got = torch.stack(partials).sum(0)
    else:
        got = torch.zeros_like(expected)
        for part, output in outputs:
            got[:, part.rows.start : part.rows.stop] = output
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def _noted(notes: list[Tensor], tensor: Tensor) -> Tensor:
    notes.append(tensor.clone())
    return tensor


@pytest.mark.parametrize("width", [16, 11])
def test_every_rank_pools_its_part_and_sees_the_whole(width: int) -> None:
    """A pool that hands its values on: what the ranks gather is all of the evidence, in its order."""
    gate = random_gate(32, width, 2)
    generation = random_generation(1, gate, torch.eye(2))
    hidden = torch.randn(6, 32)

    def values(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return value.view(6, -1, 1, 4).expand(-1, -1, 2, -1).flatten(1)

    parts: list[Tensor] = []
    for rank in range(2):
        ranks = Ranks(rank, 2, gather=partial(_noted, parts))
        Router(StepState([generation]), values, PoolShape(4, 2, 4), RoutingStats(), ranks)._pooled(
            hidden, [(generation, None)]
        )
    whole = torch.cat(parts, dim=-1)
    torch.testing.assert_close(whole[:, :width], gate.evidence(hidden)[0])
    assert not whole[:, width:].any()
