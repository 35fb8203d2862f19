"""The routed update: the fast CPU path equals the slow reference, in all its forms and at all its edges."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.sparse_lora import Gates, RoutedLinear, SparseDelta
from seta_runtime.ops.blocks import SparseBlocks
from seta_runtime.ops.cpu import TOGETHER_TASKS, TOGETHER_TOKENS, Mixture, Together, add_routed, add_together
from seta_runtime.ops.experts import DENSE_VALUES_LIMIT, ProjectionExperts, members_of, pack
from seta_runtime.ops.reference import routed_sparse_lora
from tests.seta_runtime.random_experts import CPU, random_blocks, random_experts

SHAPE = (24, 40)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Of the largest entry: bfloat16 keeps 8 bits, and the paths round at different points."""


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().clamp_min(1)
    assert (got.float() - expected).abs().max() <= TOLERANCE[dtype] * scale


def rounded(experts: Sequence[SparseBlocks | None], dtype: torch.dtype) -> list[SparseBlocks | None]:
    """As the bank stores them."""
    return [None if e is None else SparseBlocks(e.blocks, e.a.to(dtype), e.b.to(dtype)) for e in experts]


def check(
    experts: Sequence[SparseBlocks | None],
    membership: Tensor,
    task: int | None,
    num_tokens: int,
    rows: Tensor | None,
    dtype: torch.dtype,
    with_mixtures: bool = True,
) -> ProjectionExperts:
    """`add_routed` in place on y, for one task or (None) random gates, against y plus the reference on the rows."""
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, SHAPE[1], generator=generator).to(dtype)
    before = torch.randn(num_tokens, SHAPE[0], generator=generator).to(dtype)
    picked = slice(None) if rows is None else rows
    num_picked = len(x[picked])
    if task is None:
        gates = torch.rand(num_picked, len(experts), generator=generator)
        gates *= (torch.rand(len(experts), generator=generator) < 0.6).float()  # some that no token uses
    else:
        gates = membership[task].float().expand(num_picked, -1)
    expected = before.float().clone()
    expected[picked] += routed_sparse_lora(x[picked], rounded(experts, dtype), gates, SHAPE[0])
    packed = pack(experts, members_of(membership), SHAPE, dtype, CPU, with_mixtures)
    y = before.clone()
    add_routed(y, x, packed, rows, task, Mixture.of(gates) if task is None else None)
    assert_close(y, expected, dtype)
    if rows is not None:
        others = torch.ones(num_tokens, dtype=torch.bool)
        others[rows] = False
        assert torch.equal(y[others], before[others])
    return packed


memberships = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 1), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@settings(max_examples=100, deadline=None)
@given(
    bits=memberships,
    num_tokens=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_mixtures=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_any_step_equals_the_reference(
    bits: list[list[int]], num_tokens: int, dtype: torch.dtype, with_mixtures: bool, seed: int, data: st.DataObject
) -> None:
    """Experts of any number of blocks and ranks, any tasks, any rows, one task or a mixture."""
    membership, num_experts = torch.tensor(bits), len(bits[0])
    counts = data.draw(st.lists(st.integers(0, 15), min_size=num_experts, max_size=num_experts))
    ranks = data.draw(st.lists(st.sampled_from([1, 3, 8]), min_size=num_experts, max_size=num_experts))
    task = data.draw(st.integers(0, len(bits) - 1) if not with_mixtures else st.none() | st.integers(0, len(bits) - 1))
    subset = data.draw(st.none() | st.sets(st.integers(0, num_tokens - 1)))
    rows = None if subset is None else torch.tensor(sorted(subset), dtype=torch.int64)
    check(random_experts(SHAPE, counts, ranks, seed=seed), membership, task, num_tokens, rows, dtype, with_mixtures)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "count", "is_dense"), [(1, 1, False), (2, 4, False), (4, 15, True), (8, 15, True)])
def test_both_forms_of_a_task_equal_the_reference(dtype: torch.dtype, rank: int, count: int, is_dense: bool) -> None:
    membership = torch.tensor([[1, 0], [0, 1], [1, 1]])
    experts = random_experts(SHAPE, [count, count], [rank, rank])
    for task in range(3):
        for rows in (None, torch.tensor([0, 5, 6])):
            packed = check(experts, membership, task, 7, rows, dtype)
            assert [delta is not None for delta in packed.task_delta[:2]] == [is_dense, is_dense]


def test_what_no_step_reads_is_not_kept() -> None:
    """A task in the dense form needs no blocks where there are no mixtures; one in blocks needs just its own."""
    experts = random_experts(SHAPE, [15, 1], [8, 1])
    without = pack(experts, [[0], [1]], SHAPE, torch.float32, CPU, with_mixtures=False)
    assert [delta is None for delta in without.task_delta] == [False, True]
    assert [stack.expert.unique().tolist() for stack in without.stacks] == [[1]]
    with_mixtures = pack(experts, [[0], [1]], SHAPE, torch.float32, CPU)
    assert sorted(e for stack in with_mixtures.stacks for e in stack.expert.unique().tolist()) == [0, 1]


def test_a_large_projection_stays_in_blocks() -> None:
    """There the bytes decide: memory is the bank's own, plus where the blocks lie."""
    size = 256
    shape = (size * 2, DENSE_VALUES_LIMIT // size)
    experts = random_experts(shape, [6], [200], size)
    values = sum(e.num_values for e in experts if e is not None)
    packed = pack(experts, [[0]], shape, torch.float32, CPU, with_mixtures=False)
    assert isinstance(packed, ProjectionExperts) and packed.task_delta == [None]
    assert 4 * values <= packed.nbytes <= 4 * values + 6 * 3 * 8


def test_experts_without_a_gate_are_not_read() -> None:
    """Blocks of NaN would show: 0 x NaN is NaN."""
    experts = random_experts(SHAPE, [4, 4], [2, 2])
    assert experts[1] is not None
    experts[1].a.fill_(torch.nan)
    packed = pack(experts, [[0], [1]], SHAPE, torch.float32, CPU)
    y = torch.zeros(3, SHAPE[0])
    add_routed(y, torch.randn(3, SHAPE[1]), packed, None, None, Mixture.of(torch.tensor([[1.0, 0.0]] * 3)))
    assert not y.isnan().any() and y.any()


def test_the_list_of_active_experts_is_the_steps_and_not_made_again() -> None:
    """An expert that is not on the list is not read, whatever its gate."""
    experts = random_experts(SHAPE, [4, 4], [2, 2])
    packed = pack(experts, [[0], [1]], SHAPE, torch.float32, CPU)
    gates = torch.rand(3, 2) + 0.1
    assert Mixture.of(gates).active.tolist() == [0, 1]
    x, both, first = torch.randn(3, SHAPE[1]), torch.zeros(3, SHAPE[0]), torch.zeros(3, SHAPE[0])
    add_routed(both, x, packed, None, None, Mixture(gates, torch.tensor([0])))
    add_routed(first, x, packed, None, None, Mixture.of(gates * torch.tensor([1.0, 0.0])))
    assert torch.equal(both, first) and both.any()


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    padding=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_tasks_together_equal_the_tasks_one_by_one(tasks: list[int], padding: int, dtype: torch.dtype) -> None:
    experts = random_experts(SHAPE, [15] * 6, [8] * 6)
    packed = pack(experts, [[task] for task in range(6)], SHAPE, dtype, CPU, with_mixtures=False)
    task_of = torch.tensor(tasks)
    rows = None if padding == 0 else torch.randperm(len(tasks) + padding)[: len(tasks)]
    together = Together.of(rows, task_of)
    assert (together is None) == (len(set(tasks)) < 2 or max(tasks) - min(tasks) + 1 > 2 * len(set(tasks)))
    if together is None:
        return
    x = torch.randn(len(tasks) + padding, SHAPE[1]).to(dtype)
    before = torch.randn(len(x), SHAPE[0]).to(dtype)
    at_once, expected = before.clone(), before.float().clone()
    assert packed.deltas is not None
    add_together(at_once, x, packed.deltas, together)
    for i, row in enumerate(range(len(tasks)) if rows is None else rows.tolist()):
        expected[row] += x[row].float() @ packed.deltas[tasks[i]].float().T
    assert_close(at_once, expected, dtype)
    others = torch.ones(len(x), dtype=torch.bool)
    others[slice(None) if rows is None else rows] = False
    assert torch.equal(at_once[others], before[others])


def test_many_tokens_and_far_tasks_go_task_by_task() -> None:
    assert Together.of(None, torch.tensor([0, 1] * TOGETHER_TOKENS)) is None
    assert Together.of(None, torch.tensor([0, 5])) is None
    assert Together.of(None, torch.arange(TOGETHER_TASKS + 1)) is None
    found = Together.of(None, torch.tensor([3, 2, 3]))
    assert found is not None and found.tasks == range(2, 4) and found.pick.tolist() == [1, 2, 5]


def test_deltas_are_in_one_piece_only_where_every_task_has_one() -> None:
    experts = random_experts(SHAPE, [15, 15], [8, 8])
    whole = pack(experts, [[0], [1]], SHAPE, torch.float32, CPU, with_mixtures=False)
    assert whole.deltas is not None and whole.task_delta[1] is not None
    assert whole.deltas.data_ptr() == whole.task_delta[0].data_ptr(), "and not held twice"  # type: ignore[union-attr]
    assert pack([experts[0], None], [[0], [1]], SHAPE, torch.float32, CPU, with_mixtures=False).deltas is None


def test_a_task_without_blocks_here_leaves_the_output_alone() -> None:
    packed = pack(random_experts(SHAPE, [3, 0], [4, 4]), [[0], [1]], SHAPE, torch.float32, CPU)
    assert packed.task_delta[1] is None and not packed.task_blocks[1]
    y = torch.randn(4, SHAPE[0])
    before = y.clone()
    add_routed(y, torch.randn(4, SHAPE[1]), packed, None, 1, None)
    assert torch.equal(y, before)


@pytest.mark.parametrize("count", [1, 15])
@pytest.mark.parametrize("rows", [None, torch.tensor([1, 2, 5])])
def test_the_output_may_be_a_slice_of_a_packed_one(rows: Tensor | None, count: int) -> None:
    experts = pack(random_experts(SHAPE, [count], [4]), [[0]], SHAPE, torch.float32, CPU)
    x = torch.randn(6, SHAPE[1])
    packed = torch.randn(6, 10 + SHAPE[0] + 7)
    before = packed.clone()
    alone = before[:, 10 : 10 + SHAPE[0]].clone()
    add_routed(alone, x, experts, rows, 0, None)
    add_routed(packed[:, 10 : 10 + SHAPE[0]], x, experts, rows, 0, None)
    torch.testing.assert_close(packed[:, 10 : 10 + SHAPE[0]], alone, rtol=0, atol=1e-5)
    assert torch.equal(packed[:, :10], before[:, :10]) and torch.equal(packed[:, -7:], before[:, -7:])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 15), st.integers(1, 8), st.sampled_from([4, 8]), st.integers(0, 1000))
def test_the_dense_form_is_the_blocks_products(count: int, rank: int, size: int, seed: int) -> None:
    blocks = random_blocks(SHAPE, count, rank, size, torch.Generator().manual_seed(seed))
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
