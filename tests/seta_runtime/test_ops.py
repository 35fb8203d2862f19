"""The routed update: the fast CPU path equals the slow reference, in all its forms and at all its edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.sparse_lora import Gates, RoutedLinear, SparseDelta
from seta_runtime.ops.cpu import add_routed
from seta_runtime.ops.experts import ProjectionExperts, members_of, pack
from seta_runtime.ops.reference import routed_sparse_lora
from tests.seta_runtime.random_experts import CPU, random_blocks, random_projection

SHAPE = (24, 40)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Of the largest entry: bfloat16 keeps 8 bits, and the paths round at different points."""


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().clamp_min(1)
    assert (got.float() - expected).abs().max() <= TOLERANCE[dtype] * scale


def task_gates(membership: Tensor, task: int, num_tokens: int) -> Tensor:
    return membership[task].float().expand(num_tokens, -1)


def check_task(experts: ProjectionExperts, membership: Tensor, task: int, num_tokens: int, rows: Tensor | None) -> None:
    """`add_routed` for one task, in place on y, against y plus the reference on the chosen rows."""
    dtype = experts.a.dtype
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, SHAPE[1], generator=generator).to(dtype)
    before = torch.randn(num_tokens, SHAPE[0], generator=generator).to(dtype)
    picked = slice(None) if rows is None else rows
    expected = before.float().clone()
    expected[picked] += routed_sparse_lora(x[picked], experts, task_gates(membership, task, len(x[picked])))
    y = before.clone()
    add_routed(y, x, experts, rows, task, None)
    assert_close(y, expected, dtype)
    if rows is not None:
        others = torch.ones(num_tokens, dtype=torch.bool)
        others[rows] = False
        assert torch.equal(y[others], before[others])


memberships = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 1), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@settings(max_examples=60, deadline=None)
@given(
    bits=memberships,
    num_tokens=st.integers(1, 40),
    rank=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_one_task_equals_the_reference(
    bits: list[list[int]], num_tokens: int, rank: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    membership = torch.tensor(bits)
    counts = data.draw(st.lists(st.integers(0, 15), min_size=len(bits[0]), max_size=len(bits[0])).filter(any))
    task = data.draw(st.integers(0, len(bits) - 1))
    subset = data.draw(st.none() | st.sets(st.integers(0, num_tokens - 1)))
    rows = None if subset is None else torch.tensor(sorted(subset), dtype=torch.int64)
    experts = random_projection(SHAPE, membership, counts, rank, dtype=dtype, seed=seed)
    check_task(experts, membership, task, num_tokens, rows)


@settings(max_examples=40, deadline=None)
@given(
    num_experts=st.integers(1, 5),
    num_tokens=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_rows=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_mixture_equals_the_reference(
    num_experts: int, num_tokens: int, dtype: torch.dtype, has_rows: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    experts = random_projection(SHAPE, torch.ones(2, num_experts), [3] * num_experts, dtype=dtype, seed=seed)
    x = torch.randn(num_tokens, SHAPE[1], generator=generator).to(dtype)
    rows = torch.arange(0, num_tokens, 2) if has_rows else None
    picked = slice(None) if rows is None else rows
    gates = torch.rand(len(x[picked]), num_experts, generator=generator)
    expected = torch.zeros(num_tokens, SHAPE[0])
    expected[picked] = routed_sparse_lora(x[picked], experts, gates)
    y = torch.zeros(num_tokens, SHAPE[0], dtype=dtype)
    add_routed(y, x, experts, rows, None, gates)
    assert_close(y, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "count", "is_dense"), [(1, 1, False), (2, 4, False), (4, 15, True), (8, 15, True)])
def test_both_forms_of_a_task_equal_the_reference(dtype: torch.dtype, rank: int, count: int, is_dense: bool) -> None:
    membership = torch.tensor([[1, 0], [0, 1], [1, 1]])
    experts = random_projection(SHAPE, membership, [count, count], rank, dtype=dtype)
    assert [delta is not None for delta in experts.task_delta[:2]] == [is_dense, is_dense]
    for task in range(3):
        for rows in (None, torch.tensor([0, 5, 6])):
            check_task(experts, membership, task, 7, rows)


def test_a_task_without_blocks_here_leaves_the_output_alone() -> None:
    membership = torch.tensor([[1, 0], [0, 1]])
    experts = random_projection(SHAPE, membership, [3, 0])
    assert experts.task_delta[1] is None and not len(experts.task_rows[1])
    y = torch.randn(4, SHAPE[0])
    before = y.clone()
    add_routed(y, torch.randn(4, SHAPE[1]), experts, None, 1, None)
    assert torch.equal(y, before)


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 2, 5])])
def test_the_output_may_be_a_slice_of_a_packed_one(rows: Tensor | None) -> None:
    membership = torch.ones(1, 1)
    experts = random_projection(SHAPE, membership, [4])
    x = torch.randn(6, SHAPE[1])
    packed = torch.randn(6, 10 + SHAPE[0] + 7)
    before = packed.clone()
    alone = before[:, 10 : 10 + SHAPE[0]].clone()
    add_routed(alone, x, experts, rows, 0, None)
    add_routed(packed[:, 10 : 10 + SHAPE[0]], x, experts, rows, 0, None)
    assert torch.equal(packed[:, 10 : 10 + SHAPE[0]], alone)
    assert torch.equal(packed[:, :10], before[:, :10]) and torch.equal(packed[:, -7:], before[:, -7:])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 15), st.integers(1, 8), st.sampled_from([4, 8]), st.integers(0, 1000))
def test_dense_and_rank_rows_are_the_same_delta(count: int, rank: int, size: int, seed: int) -> None:
    blocks = random_blocks(SHAPE, count, rank, size, torch.Generator().manual_seed(seed))
    a, b = blocks.rank_rows(SHAPE)
    assert a.shape == (len(blocks.blocks) * rank, SHAPE[1]) and b.shape == (len(blocks.blocks) * rank, SHAPE[0])
    torch.testing.assert_close(b.T @ a, blocks.dense(SHAPE), rtol=0, atol=1e-5)
    by_hand = torch.zeros(SHAPE)
    for (row, column), block_a, block_b in zip(blocks.blocks.tolist(), blocks.a, blocks.b, strict=True):
        by_hand[row * size : (row + 1) * size, column * size : (column + 1) * size] += block_b @ block_a
    torch.testing.assert_close(blocks.dense(SHAPE), by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [2, 15])
def test_serving_equals_the_layer_that_was_trained(count: int) -> None:
    """Two tasks, one shared expert: `RoutedLinear` under per-token gates against the engine's grouped update."""
    generator = torch.Generator().manual_seed(1)
    experts = [random_blocks(SHAPE, count, 4, 8, generator) for _ in range(3)]
    membership = torch.tensor([[1, 0, 1], [0, 1, 1]])
    linear = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=True).requires_grad_(False)
    trained = RoutedLinear(linear, Gates())
    for index, expert in enumerate(experts):
        trained.add(str(index), SparseDelta(expert.blocks, expert.a, expert.b, SHAPE))
        trained.freeze(str(index))
    x = torch.randn(9, SHAPE[1], generator=generator)
    task_of = torch.tensor([0, 1, -1, 0, 0, 1, -1, 1, 0])
    for index, column in enumerate(membership.T):
        gate = torch.where(task_of >= 0, column[task_of], 0).float().unsqueeze(0)
        trained.gates.active.append(((str(index),), gate))

    packed = pack(experts, members_of(membership), SHAPE, torch.float32, CPU)
    y = linear(x)
    for task in (0, 1):
        add_routed(y, x, packed, (task_of == task).nonzero().flatten(), task, None)
    torch.testing.assert_close(y, trained(x.unsqueeze(0))[0], rtol=0, atol=1e-4)
    assert torch.equal(y[task_of < 0], linear(x)[task_of < 0])
