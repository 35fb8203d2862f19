"""The GPU's path: the kernel in Triton's interpreter against the reference, the router's buffers, tracing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seta_runtime.layer import FusedProjection, OutputSlice
from seta_runtime.ops import fused
from seta_runtime.ops.blocks import SparseBlocks
from seta_runtime.ops.fused import FusedStep, RankBlocks, SlotTables, rank_blocks
from seta_runtime.ops.reference import routed_sparse_lora
from seta_runtime.resident import ResidentGeneration
from seta_runtime.route import RoutedDecoderLayer, Router
from seta_runtime.state import StepState
from seta_runtime.stats import RoutingStats
from tests.seta_runtime.random_experts import (
    CPU,
    random_blocks,
    random_gate,
    random_generation,
    random_softmax_gate,
)
from tests.seta_runtime.test_route import HIDDEN, SHAPE, WIDTH, hidden_states, softmax_pool

SIZE, D_OUT, D_IN = 8, 16, 24
ROOM = 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    """Triton decides when a kernel is defined whether it will be interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from seta_runtime.ops import triton_kernel

        assert type(triton_kernel.add_routed_kernel).__name__ == "InterpretedFunction"
        yield


def some_experts(counts: Sequence[int], rank: int, seed: int) -> list[SparseBlocks | None]:
    generator = torch.Generator().manual_seed(seed)
    return [random_blocks((D_OUT, D_IN), n, rank, SIZE, generator) if n else None for n in counts]


def some_gates(num_tokens: int, num_experts: int, seed: int) -> Tensor:
    """Most are zero, and so are whole rows: base tokens."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.rand(num_tokens, num_experts, generator=generator)
    is_on = torch.rand(num_tokens, num_experts, generator=generator) < 0.3
    return gates * is_on * (torch.rand(num_tokens, 1, generator=generator) < 0.7)


def blocks_of(experts: Sequence[SparseBlocks | None], dtype: torch.dtype) -> RankBlocks:
    return rank_blocks(experts, (D_OUT, D_IN), dtype, CPU)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rank=st.sampled_from([1, 5, 16, 20]),
    counts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=ROOM).filter(any), min_size=1, max_size=2),
    num_tokens=st.integers(1, 34),
    seed=st.integers(0, 1000),
)
def test_the_kernel_equals_the_reference(
    dtype: torch.dtype, rank: int, counts: list[list[int]], num_tokens: int, seed: int
) -> None:
    """One or two generations in a batch whose tokens take turns; y is a slice of a packed output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, D_IN, generator=generator).to(dtype)
    packed = torch.randn(num_tokens, 3 + D_OUT + 2, generator=generator).to(dtype)
    expected = packed.float().clone()
    step = FusedStep(48, len(counts), ROOM, SIZE, CPU)
    tables = SlotTables(step, D_OUT)
    step.clear(num_tokens)
    for slot, numbers in enumerate(counts):
        experts, rows = some_experts(numbers, rank, seed + slot), torch.arange(slot, num_tokens, len(counts))
        gates = some_gates(len(rows), len(numbers), seed + slot)
        tables.put(slot, blocks_of(experts, dtype))
        step.write(slot, rows, gates)
        expected[rows, 3 : 3 + D_OUT] += routed_sparse_lora(x[rows], experts, gates, D_OUT)
    step.finish(num_tokens)
    fused.add_routed(packed[:, 3 : 3 + D_OUT], x, step, tables)
    assert (packed.float() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max().clamp_min(1)


def test_what_no_token_of_a_tile_needs_is_never_read_and_base_rows_stay() -> None:
    """Blocks of NaN would show: 0 x NaN is NaN. -0.0 would show a row that had a zero added."""
    experts = some_experts([4, 4], 5, seed=1)
    assert experts[1] is not None
    experts[1].a.fill_(torch.nan)
    step = FusedStep(32, 1, ROOM, SIZE, CPU)
    tables = SlotTables(step, D_OUT)
    tables.put(0, blocks_of(experts, torch.float32))
    gates = torch.zeros(20, 2)
    gates[3, 0] = 1.0
    step.write(0, None, gates)
    step.finish(20)
    assert step.counts.tolist() == [1, 0] and step.columns[0, 0] == 0
    y = torch.full((20, D_OUT), -0.0)
    fused.add_routed(y, torch.randn(20, D_IN), step, tables)
    others = [row for row in range(20) if row != 3]
    assert bool(y[3].isfinite().all()) and bool(y[3].any())
    assert not y[others].any() and bool(torch.signbit(y[others]).all())


def test_an_emptied_slot_adds_nothing_and_can_be_filled_again() -> None:
    step = FusedStep(16, 2, ROOM, SIZE, CPU)
    tables = SlotTables(step, D_OUT)
    addresses = [t.data_ptr() for t in (tables.starts, tables.pointers, step.gates, step.counts, step.columns)]
    x, outputs = torch.randn(4, D_IN), []
    for count in (4, 0, 2):
        tables.put(1, blocks_of(some_experts([count], 3, count), x.dtype) if count else None)
        step.clear(4)
        step.write(1, None, torch.ones(4, 1))
        step.finish(4)
        y = torch.zeros(4, D_OUT)
        fused.add_routed(y, x, step, tables)
        outputs.append(y)
    assert outputs[0].any() and not outputs[1].any() and outputs[2].any()
    assert not torch.equal(outputs[0], outputs[2])
    now = [t.data_ptr() for t in (tables.starts, tables.pointers, step.gates, step.counts, step.columns)]
    assert now == addresses, "a recorded graph reads the same buffers"


@pytest.mark.parametrize("is_mixture", [False, True])
def test_the_router_leaves_the_same_decisions_for_the_kernel_as_in_groups(is_mixture: bool) -> None:
    membership = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 1, 0]])
    generations = [
        random_generation(i, random_softmax_gate(HIDDEN, WIDTH, membership, seed=i), membership)
        if is_mixture
        else random_generation(i, random_gate(HIDDEN, WIDTH, 3, seed=i), membership)
        for i in (1, 2)
    ]
    slots = [0] * 15 + [-1] * 5 + [2] * 17
    hidden = hidden_states(4)
    routers = []
    for is_fused in (False, True):
        state = StepState([generations[0], None, generations[1]])
        state.fused = FusedStep(64, 3, ROOM, SIZE, CPU) if is_fused else None
        if state.fused is not None:
            state.fused.gates.fill_(9.0)  # an earlier step's
        router = Router(state, softmax_pool, SHAPE, RoutingStats())
        state.begin_step(torch.tensor(slots))
        RoutedDecoderLayer(_Stub(), router)(torch.arange(len(hidden)), hidden, None)
        routers.append(router)
    expected = torch.zeros(48, 3 * ROOM)
    for group in routers[0].state.groups:
        rows = torch.arange(len(hidden)) if group.rows is None else group.rows
        first = routers[0].state.slot_of(group.generation) * ROOM
        expected[rows, first : first + 3] = (
            membership[group.task].float() if group.mixture is None else group.mixture.gates
        )
    step = routers[1].state.fused
    assert step is not None and not routers[1].state.groups and expected.any()
    torch.testing.assert_close(step.gates[:48], expected)
    for tile in range(3):
        active = expected[16 * tile : 16 * tile + 16].any(0).nonzero().flatten()
        assert step.columns[tile, : int(step.counts[tile])].tolist() == active.tolist()


class _Stub(nn.Module):
    """Stands for an engine's module: `x W`, with a bias of None beside it."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D_IN, 4 + D_OUT, device=device))

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, None]:
        return (x @ self.weight if x.shape[-1] == D_IN else x), None


def traced_modules() -> tuple[RoutedDecoderLayer, FusedProjection, Tensor]:
    """A layer m and a projection on the meta device, where no value can be looked at."""
    meta = torch.device("meta")
    state = StepState([None])
    state.fused = FusedStep(32, 1, ROOM, SIZE, meta)
    router = Router(state, softmax_pool, SHAPE, RoutingStats())
    projection = FusedProjection(_Stub("meta"), state.fused, [OutputSlice(0, "v_proj", 4, D_OUT)])
    layer = RoutedDecoderLayer(_Positional(projection), router)
    return layer, projection, torch.empty(20, D_IN, device=meta)


class _Positional(nn.Module):
    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> Any:
        return self.projection(hidden)[0]


def test_the_layers_trace_in_one_graph() -> None:
    layer, _, x = traced_modules()
    graph = make_fx(lambda hidden: layer(hidden, hidden, None))(x).graph
    names = [str(node.target) for node in graph.nodes if "seta" in str(node.target)]
    assert names == ["seta.route.default", "seta.add_routed.default"]


def test_torch_compile_captures_the_layers_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    layer, _, x = traced_modules()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(disable=False):
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        assert compiled(x, x, None).shape == (20, 4 + D_OUT)
    assert len(graphs) == 1 and "seta.add_routed" in graphs[0].code and "seta.route" in graphs[0].code


def test_the_kernel_compiles_for_an_h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code for a card that is not here: the interpreter accepts more than Triton's compiler does."""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    name = "seta_runtime.ops.triton_kernel"
    monkeypatch.delitem(sys.modules, name)
    kernel = importlib.import_module(name).add_routed_kernel
    constants = {"TOKENS": fused.TOKENS, "RANKS": fused.RANKS, "EDGE": 128, "IN_FLOAT32": False}
    pointers = {"y": "*bf16", "x": "*bf16", "gates": "*fp32", "pointers": "*i64"}
    pointers |= dict.fromkeys(("counts", "columns", "starts"), "*i32")
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    assert "mma" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"], "tensor cores do the products"


def test_only_a_gpu_gets_the_kernel() -> None:
    assert fused.is_selected(torch.device("cuda", 1)) and not fused.is_selected(CPU)


def test_a_generations_blocks_are_found_by_layer_and_target() -> None:
    _, projection, _ = traced_modules()
    step = FusedStep(16, 1, ROOM, SIZE, CPU)
    projection = FusedProjection(_Stub(), step, [OutputSlice(3, "v_proj", 4, D_OUT)])
    gate = random_gate(HIDDEN, WIDTH, 1)
    held = {(3, "v_proj"): blocks_of(some_experts([4], 2, 0), torch.float32)}
    generation = ResidentGeneration(1, 1, ("t",), ("e",), torch.ones(1, 1), gate, held)  # type: ignore[arg-type]
    projection.put(0, generation)
    step.write(0, None, torch.ones(3, 1))
    step.finish(3)
    output, bias = projection(torch.randn(3, D_IN))
    assert bias is None and not output[:, :4].any() and output[:, 4:].any()
    projection.put(0, None)
    assert not projection(torch.randn(3, D_IN))[0].any()
