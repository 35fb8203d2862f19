"""Where rank rows start: along the part of a block's gradient that r rows can follow."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapters.gradient_init import cut, principal_rows, start_along
from adapters.parallel import Processes
from adapters.sparse_lora import SparseDelta

SIZE = 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(gradient: Tensor, rows: Tensor) -> float:
    """The share of `|G|²` that is left when G acts only on what the rows span."""
    return float((gradient @ rows.T).pow(2).sum() / gradient.pow(2).sum())


@given(st.integers(0, 999), st.integers(1, SIZE), st.sampled_from([1e-20, 1e-6, 1.0, 1e6]))
def test_no_other_rows_keep_more_of_the_gradient(seed: int, rank: int, scale: float) -> None:
    """Eckart-Young: the share is that of the r largest singular values; the rows are orthonormal, the best first."""
    gradient = random(SIZE, SIZE, seed=seed)
    rows = principal_rows(scale * gradient.unsqueeze(0), rank)[0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(rank), atol=1e-5, rtol=0)
    values = torch.linalg.svdvals(gradient).pow(2)
    assert kept(gradient, rows) == pytest.approx(float(values[:rank].sum() / values.sum()), rel=1e-4)
    lengths = (gradient @ rows.T).norm(dim=0)
    assert bool((lengths[:-1] >= lengths[1:] - 1e-4).all())


def test_a_blocks_rows_follow_that_blocks_gradient() -> None:
    """A gradient of rank 1 in each block: the first row is its direction; and the delta still starts at zero."""
    blocks = torch.tensor([[0, 2], [1, 0]], dtype=torch.int32)
    delta = SparseDelta.fresh(blocks, 3, SIZE, (16, 24), torch.Generator().manual_seed(0))
    gradient, ways = torch.zeros(16, 24), random(2, SIZE, seed=1)
    gradient[:8, 16:] = torch.outer(random(SIZE, seed=2), ways[0])
    gradient[8:, :8] = torch.outer(random(SIZE, seed=3), ways[1])
    start_along({(0, "v_proj"): delta}, {(0, "v_proj"): gradient})
    alike = (delta.a[:, 0] * ways / ways.norm(dim=1, keepdim=True)).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones(2))
    assert not delta.dense().any() and delta.a.requires_grad


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_block_without_a_usable_gradient_keeps_its_random_rows(bad: float) -> None:
    blocks = torch.tensor([[0, 0], [0, 1]], dtype=torch.int32)
    delta = SparseDelta.fresh(blocks, 2, SIZE, (8, 16), torch.Generator().manual_seed(0))
    before, gradient = delta.a.detach().clone(), random(8, 16)
    gradient[:, 8:] = 0
    gradient[3, 9] = bad
    start_along({(0, "v_proj"): delta}, {(0, "v_proj"): gradient})
    assert torch.equal(delta.a[1], before[1]) and not torch.equal(delta.a[0], before[0])
    assert delta.a.isfinite().all()


def test_rows_past_the_blocks_edge_stay_random() -> None:
    delta = SparseDelta.fresh(torch.tensor([[0, 0]]), SIZE + 2, SIZE, (8, 8), torch.Generator().manual_seed(0))
    before = delta.a.detach().clone()
    start_along({(0, "v_proj"): delta}, {(0, "v_proj"): random(8, 8)})
    assert torch.equal(delta.a[:, SIZE:], before[:, SIZE:])
    torch.testing.assert_close(delta.a[0, :SIZE] @ delta.a[0, :SIZE].T, torch.eye(SIZE), atol=1e-5, rtol=0)


def test_sites_without_a_gradient_stay_and_gradients_without_a_site_are_left() -> None:
    delta = SparseDelta.fresh(torch.tensor([[0, 0]]), 2, SIZE, (8, 8), torch.Generator().manual_seed(0))
    before = delta.a.detach().clone()
    start_along({(0, "v_proj"): delta}, {(1, "v_proj"): random(8, 8)})
    assert torch.equal(delta.a, before)


def test_cut_takes_each_block_at_its_place() -> None:
    matrix = random(16, 24)
    found = cut(matrix.bfloat16(), torch.tensor([[1, 2], [0, 0]], dtype=torch.int32), SIZE)
    expected = torch.stack([matrix[8:16, 16:24], matrix[:8, :8]]).bfloat16().float()
    assert torch.equal(found, expected)


@dataclass(frozen=True)
class Recorded(Processes):
    """The second of two processes; `first`: what the first one's tensors are."""

    first: tuple[Tensor, ...] = ()

    def add_up(self, tensors: object) -> None:
        assert isinstance(tensors, list)
        for tensor, other in zip(tensors, self.first, strict=True):
            tensor += other


def test_all_processes_get_the_first_ones_rows() -> None:
    """Whose linear algebra may round differently, or turn a row's sign around."""
    delta = SparseDelta.fresh(torch.tensor([[0, 0]]), 2, SIZE, (8, 8), torch.Generator().manual_seed(0))
    theirs = random(1, 2, SIZE, seed=5)
    start_along({(0, "v_proj"): delta}, {(0, "v_proj"): random(8, 8)}, Recorded(1, 2, (theirs,)))
    assert torch.equal(delta.a, theirs)
