"""Rank rows into sub-blocks and back: the same ΔW, no sub-block without need, the smallest rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.lora.convert import block_values, to_blocks, to_expert, to_lora
from adapters.lora.files import LoraDelta
from adapters.sparse_lora import SparseDelta

SIZE = 4


def lora(rank: int, d_out: int = 8, d_in: int = 12, scale: float = 1.0, seed: int = 0) -> LoraDelta:
    generator = torch.Generator().manual_seed(seed)
    return LoraDelta(torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator), scale)


def delta_of(blocks: list[tuple[int, int]], rank: int, seed: int = 0) -> SparseDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(len(blocks), rank, SIZE, generator=generator)
    b = torch.randn(len(blocks), SIZE, rank, generator=generator)
    return SparseDelta(torch.tensor(blocks, dtype=torch.int32).reshape(-1, 2), a, b, (8, 12))


def dense(delta: SparseDelta) -> Tensor:
    return delta.dense().detach().double()


@given(rank=st.integers(1, 9), scale=st.sampled_from([1.0, 2.0, 0.3]), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_the_sub_blocks_are_the_lora(rank: int, scale: float, seed: int) -> None:
    """Ranks up to the block's edge and above it."""
    found = lora(rank, scale=scale, seed=seed)
    blocks, a, b = to_blocks(found, SIZE)
    assert blocks.tolist() == [[row, column] for row in range(2) for column in range(3)]
    assert a.shape == (6, min(rank, SIZE), SIZE) and b.shape == (6, SIZE, min(rank, SIZE))
    torch.testing.assert_close(dense(SparseDelta(blocks, a, b, (8, 12))), found.dense(), atol=1e-5, rtol=1e-5)


def test_rank_rows_are_taken_as_they_are() -> None:
    """No arithmetic but the scale: the values of A are the adapter's, bit for bit."""
    found = lora(2, scale=2.0)
    blocks, a, b = to_blocks(found, SIZE)
    for (row, column), own_a, own_b in zip(blocks.tolist(), a, b, strict=True):
        assert torch.equal(own_a, found.a[:, column * SIZE : (column + 1) * SIZE])
        assert torch.equal(own_b, 2 * found.b[row * SIZE : (row + 1) * SIZE])


def test_sub_blocks_that_are_zero_are_left_out() -> None:
    found = lora(2)
    found.a[:, 4:8] = 0
    found.b[:4] = 0
    blocks, _, _ = to_blocks(found, SIZE)
    assert blocks.tolist() == [[1, 0], [1, 2]] and blocks.dtype == torch.int32


def test_projections_of_several_ranks_become_one_expert() -> None:
    deltas = {(1, "v_proj"): lora(1), (2, "v_proj"): lora(3, seed=1), (2, "o_proj"): lora(7, 12, 8, seed=2)}
    expert = to_expert(deltas, SIZE)
    assert {site: delta.a.shape[1] for site, delta in expert.items()} == dict.fromkeys(deltas, 4)
    for site, delta in expert.items():
        torch.testing.assert_close(dense(delta), deltas[site].dense(), atol=1e-5, rtol=1e-5)
    assert block_values(deltas, SIZE) == sum(delta.a.numel() + delta.b.numel() for delta in expert.values())


@pytest.mark.parametrize("rank", [1, 2, SIZE])
def test_a_lora_comes_back_with_its_own_rank(rank: int) -> None:
    """Its sub-blocks have more rank rows than the LoRA: the true rank is found again."""
    found = lora(rank, scale=0.5)
    back = to_lora([SparseDelta(*to_blocks(found, SIZE), (8, 12))])
    assert back is not None and back.scale == 1.0
    assert len(back.a) == rank and back.b.shape == (8, rank)
    torch.testing.assert_close(back.dense(), found.dense(), atol=1e-5, rtol=1e-5)


@given(
    blocks=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1),
    rank=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(deadline=None, max_examples=40)
def test_an_expert_is_the_lora_of_the_smallest_rank(
    blocks: set[tuple[int, int]], rank: int, dtype: torch.dtype
) -> None:
    part = delta_of(sorted(blocks), rank)
    part = SparseDelta(part.blocks, part.a.detach().to(dtype), part.b.detach().to(dtype), part.shape)
    expected = dense(SparseDelta(part.blocks, part.a.detach().double(), part.b.detach().double(), part.shape))
    found = to_lora([part])
    assert found is not None
    assert len(found.a) == int(torch.linalg.matrix_rank(expected))
    torch.testing.assert_close(found.dense(), expected, atol=1e-5, rtol=1e-5)


def test_where_the_delta_is_of_full_rank_its_zeros_stay_zero() -> None:
    part = delta_of([(0, 1), (1, 1)], rank=6)
    found = to_lora([part])
    assert found is not None and len(found.a) == SIZE
    assert torch.equal(found.dense() == 0, dense(part) == 0)
    wide = to_lora([delta_of([(1, 0), (1, 1), (1, 2)], rank=6)])
    assert wide is not None and len(wide.a) == SIZE and not wide.b[:4].any()


def test_experts_of_one_task_add_up() -> None:
    one, other = delta_of([(0, 0), (1, 2)], 2), delta_of([(0, 0), (0, 1)], 1, seed=3)
    found = to_lora([one, other])
    assert found is not None
    torch.testing.assert_close(found.dense(), dense(one) + dense(other), atol=1e-5, rtol=1e-5)


def test_nothing_is_no_lora() -> None:
    part = delta_of([(0, 0)], 2)
    zero = SparseDelta(part.blocks, part.a.detach(), torch.zeros_like(part.b), part.shape)
    assert to_lora([zero]) is None
