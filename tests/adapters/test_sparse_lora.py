"""The training-side routed layer: y = W0 x + sum_e g_e ΔW_e x, against slow loops (eq. 8, 14)."""

import pytest
import torch
from torch import Tensor, nn

from adapters import delta_product
from adapters.sparse_lora import Gates, RoutedLinear, SparseDelta

SIZE = 4
SHAPE = (8, 12)
RANK = 3


def random_delta(blocks: list[tuple[int, int]], seed: int) -> SparseDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(len(blocks), RANK, SIZE, generator=generator)
    b = torch.randn(len(blocks), SIZE, RANK, generator=generator)
    return SparseDelta(torch.tensor(blocks, dtype=torch.int32), a, b, SHAPE)


@torch.no_grad()
def slow_dense(delta: SparseDelta) -> Tensor:
    weight = torch.zeros(delta.shape)
    for (row, column), a, b in zip(delta.blocks.tolist(), delta.a, delta.b, strict=True):
        for i in range(SIZE):
            for j in range(SIZE):
                weight[row * SIZE + i, column * SIZE + j] += sum(float(b[i, r] * a[r, j]) for r in range(RANK))
    return weight


@pytest.fixture(params=["blocks", "dense"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How deltas are multiplied."""
    monkeypatch.setattr(delta_product, "SPARSE_SHARE", 1 if request.param == "blocks" else 0)
    return str(request.param)


def routed(dtype: torch.dtype = torch.float32) -> tuple[RoutedLinear, Gates]:
    """A frozen projection with a bias and two experts of disjoint blocks."""
    torch.manual_seed(0)
    base = nn.Linear(SHAPE[1], SHAPE[0], dtype=dtype).requires_grad_(False)
    gates = Gates()
    layer = RoutedLinear(base, gates)
    layer.add("one", random_delta([(0, 1), (1, 2)], seed=1))
    layer.add("two", random_delta([(0, 0), (1, 1)], seed=2))
    return layer, gates


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, SHAPE[1], generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("blocks", [[(0, 0)], [(1, 2)], [(0, 2), (1, 0)], [(r, c) for r in range(2) for c in range(3)]])
def test_dense_equals_a_loop_over_blocks(blocks: list[tuple[int, int]]) -> None:
    delta = random_delta(blocks, seed=4)
    torch.testing.assert_close(delta.dense(), slow_dense(delta), atol=1e-5, rtol=1e-5)


def test_dense_is_zero_outside_the_blocks() -> None:
    dense = random_delta([(1, 2)], seed=4).dense()
    assert bool(dense[4:, 8:].all())
    dense[4:, 8:] = 0
    assert not dense.any()


def test_taking_every_part_of_a_delta_leaves_nothing_out() -> None:
    """Rows are the very same bytes, and the parts' deltas add up to the whole."""
    delta = random_delta([(0, 1), (0, 2), (1, 0), (1, 2)], seed=6)
    parts = [torch.tensor(chosen, dtype=torch.int32) for chosen in ([[0, 2], [1, 0]], [[0, 1], [1, 2]])]
    first, second = (delta.take(part) for part in parts)
    assert torch.equal(first.a, delta.a[[1, 2]]) and torch.equal(first.b, delta.b[[1, 2]])
    assert first.blocks.tolist() == [[0, 2], [1, 0]] and first.rank == RANK
    torch.testing.assert_close(first.dense() + second.dense(), delta.dense())
    with torch.no_grad():
        first.a.zero_()
    assert bool(delta.a.any(dim=(1, 2)).all()), "a part has its own memory"


def test_a_fresh_delta_is_zero_and_can_learn() -> None:
    blocks = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    delta = SparseDelta.fresh(blocks, RANK, SIZE, SHAPE, torch.Generator().manual_seed(0))
    assert not delta.dense().any()
    assert float(delta.a.detach().abs().max()) <= SIZE**-0.5
    delta.dense().sum().backward()
    assert delta.b.grad is not None and bool(delta.b.grad.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_gates_of_zero_give_the_base_output_bit_for_bit(dtype: torch.dtype, is_frozen: bool) -> None:
    layer, gates = routed(dtype)
    if is_frozen:
        layer.freeze("one")
    x = inputs(dtype)
    expected = layer.base(x)
    assert torch.equal(layer(x), expected), "no gate is set"
    gates.active = [(("one",), torch.zeros(2, 5)), (("two",), torch.zeros(2, 5))]
    assert torch.equal(layer(x), expected)


def test_tokens_whose_gates_are_zero_are_bit_for_bit_base_among_others() -> None:
    layer, gates = routed()
    gate = torch.zeros(2, 5)
    gate[0, 3] = 1
    gates.active = [(("one",), gate)]
    x = inputs()
    y, base = layer(x), layer.base(x)
    is_routed = gate.bool()
    assert torch.equal(y[~is_routed], base[~is_routed])
    assert bool((y[is_routed] != base[is_routed]).all())


@pytest.mark.parametrize("frozen", [[], ["one"], ["one", "two"]])
def test_gates_weigh_the_experts_of_every_token(frozen: list[str]) -> None:
    """Eq. 14, token by token, whether an expert is frozen or not."""
    layer, gates = routed()
    for expert_id in frozen:
        layer.freeze(expert_id)
    generator = torch.Generator().manual_seed(5)
    by_expert = {name: torch.rand(2, 5, generator=generator) for name in ("one", "two")}
    gates.active = [((name,), gate) for name, gate in by_expert.items()]
    x = inputs()
    y = layer(x)
    for row in range(2):
        for t in range(5):
            expected = layer.base.weight @ x[row, t] + layer.base.bias
            for name, delta in layer.deltas.items():
                expected = expected + by_expert[name][row, t] * (slow_dense(delta) @ x[row, t])
            torch.testing.assert_close(y[row, t], expected, atol=1e-4, rtol=1e-4)


def test_frozen_experts_and_the_base_get_no_gradient() -> None:
    """Isolation, eq. 8: only the expert that trains has gradients."""
    layer, gates = routed()
    layer.freeze("one")
    gates.active = [(("one", "two"), torch.ones(2, 5))]
    layer(inputs()).pow(2).sum().backward()
    for parameter in (*layer.deltas["one"].parameters(), *layer.base.parameters()):
        assert parameter.grad is None
    for parameter in layer.deltas["two"].parameters():
        assert parameter.grad is not None and bool(parameter.grad.any())


def test_an_expert_added_again_replaces_the_frozen_one() -> None:
    layer, gates = routed()
    layer.freeze("one")
    fresh = random_delta([(0, 1)], seed=9)
    layer.add("one", fresh)
    gates.active = [(("one",), torch.ones(2, 5))]
    x = inputs()
    torch.testing.assert_close(layer(x), layer.base(x) + x @ slow_dense(fresh).T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_expert_cut_in_two_computes_the_same_bits(dtype: torch.dtype) -> None:
    layer, gates = routed(dtype)
    layer.freeze("one")
    gates.active = [(("one",), torch.ones(2, 5))]
    x = inputs(dtype)
    expected = layer(x)
    whole = layer.deltas["one"]
    part = torch.tensor([[1, 2]], dtype=torch.int32)
    rest = whole.without(part)
    assert rest is not None and whole.without(whole.blocks) is None
    layer.remove("one")
    layer.add("one", rest)
    layer.add("shared", whole.take(part))
    gates.active = [(("one", "shared"), torch.ones(2, 5))]
    assert torch.equal(layer(x), expected)
    for expert_id in ("one", "shared"):
        layer.freeze(expert_id)
    assert torch.equal(layer(x), expected)


def test_an_expert_that_learns_again_is_assembled_anew() -> None:
    layer, gates = routed()
    for expert_id in ("one", "two"):
        layer.freeze(expert_id)
    gates.active = [(("one", "two"), torch.ones(2, 5))]
    x = inputs()
    before = layer(x)
    layer.thaw("one")
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.deltas["one"].b.mul_(2)
    torch.testing.assert_close(layer(x) - before, x @ slow_dense(layer.deltas["one"]).T / 2, atol=1e-4, rtol=1e-4)
    layer(x).sum().backward()
    assert layer.deltas["one"].b.grad is not None and layer.deltas["two"].b.grad is None


def test_few_blocks_are_multiplied_one_by_one_and_many_as_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    layer, _ = routed()
    assert isinstance(layer.product_of(("one",)), delta_product.BlockProduct)
    assert isinstance(layer.product_of(("one", "two")), delta_product.DenseProduct)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_equal_those_of_the_dense_product(dtype: torch.dtype) -> None:
    delta, x = random_delta([(0, 1), (0, 2), (1, 2)], seed=4), inputs(dtype).requires_grad_()
    arguments = (delta.blocks, delta.products(), SHAPE)
    parameters = (x, delta.a, delta.b)
    dense = delta_product.DenseProduct(delta_product.dense_delta(*arguments).to(dtype))
    blocks = delta_product.BlockProduct(delta.products().to(dtype), delta.blocks, SHAPE)
    seen = torch.randn(2, 5, SHAPE[0], generator=torch.Generator().manual_seed(6)).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for one, other in zip(*(torch.autograd.grad(p(x), parameters, seen) for p in (dense, blocks)), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
