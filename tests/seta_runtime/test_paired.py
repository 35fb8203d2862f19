"""The compiled product over sub-blocks: equal to a slow reference in each variant, the same for a token whatever is
beside it; and what happens where it cannot be had."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seta_runtime.ops import compiler, paired
from seta_runtime.ops.blocks import SparseBlocks
from seta_runtime.ops.cpu import add_routed
from seta_runtime.ops.experts import ProjectionExperts
from seta_runtime.ops.paired import MOST, PairedBlocks, PairedExperts, can_pair, product
from seta_runtime.ops.task_rows import TaskRows
from tests.seta_runtime.random_experts import packed_in_bfloat16, random_experts

has_compiler = shutil.which("cc") is not None
VARIANTS = [
    pytest.param(
        flags,
        marks=pytest.mark.skipif(
            not has_compiler or not needed <= compiler.processor_flags(),
            reason="the processor or the compiler is missing",
        ),
    )
    for needed, flags in paired._VARIANTS
]
needs_product = pytest.mark.skipif(product() is None, reason="the processor or the compiler is missing")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = paired._load((*paired.COMMON_FLAGS, *request.param))
    monkeypatch.setattr(paired, "product", lambda: multiply)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing compiled yet in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    product.cache_clear()
    yield tmp_path / "seta"
    product.cache_clear()


def bf16(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def present(experts: list[SparseBlocks | None]) -> list[tuple[int, SparseBlocks]]:
    """As a bank stores them."""
    found = ((e, expert) for e, expert in enumerate(experts) if expert is not None)
    return [(e, SparseBlocks(one.blocks, one.a.bfloat16(), one.b.bfloat16())) for e, one in found]


def pair(experts: list[tuple[int, SparseBlocks]], members: list[list[int]]) -> PairedExperts:
    return paired.pair([(e, PairedBlocks.of(one)) for e, one in experts], members)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([16, 32, 48, 64, 80]),
    ranks=st.lists(st.sampled_from([1, 8, 16, 32, 40]), min_size=3, max_size=3),
    counts=st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any),
    num_tokens=st.integers(1, 150),
    task_of=st.lists(st.integers(-1, 2), min_size=1, max_size=6),
    is_sorted=st.booleans(),
)
def test_any_step_equals_the_reference(
    variant: None, size: int, ranks: list[int], counts: list[int], num_tokens: int, task_of: list[int], is_sorted: bool
) -> None:
    """Tasks of one expert and of several that share places; tokens side by side and scattered; many and few."""
    shape, members = (2 * size, 3 * size), [[0], [1, 2], [0, 2]]
    experts = present(random_experts(shape, counts, ranks, size))
    x = bf16(num_tokens, shape[1] + 3, seed=1)[:, 2 : 2 + shape[1]]
    packed = bf16(num_tokens, shape[0] + 5, seed=2)
    tasks = torch.tensor((task_of * num_tokens)[:num_tokens])
    tasks = tasks.sort().values if is_sorted else tasks
    groups = [(task, (tasks == task).nonzero().flatten()) for task in range(3) if (tasks == task).any()]
    mine = [[e for e in task if e in dict(experts)] for task in members]
    y = packed.clone()
    pair(experts, mine).add(y[:, 4 : 4 + shape[0]], x, TaskRows.of(groups, num_tokens))  # type: ignore[arg-type]
    expected = packed.float()
    for task, rows in groups:
        for expert in mine[task]:
            expected[rows, 4 : 4 + shape[0]] += x[rows].float() @ dict(experts)[expert].dense(shape).T
    is_outside = torch.ones_like(y, dtype=torch.bool)
    is_outside[tasks >= 0, 4 : 4 + shape[0]] = False
    assert torch.equal(y[is_outside], packed[is_outside])
    assert (y.float() - expected).abs().max() <= 0.03 * expected.abs().max()


def test_a_token_is_the_same_alone_and_beside_others(variant: None) -> None:
    experts = pair(present(random_experts((192, 576), [13], [32], 64)), [[0]])
    x, y = bf16(70, 576, seed=1), bf16(70, 192, seed=2)
    together, alone, scattered = y.clone(), y.clone(), y.clone()
    experts.add(together, x, TaskRows.of([(0, None)], 70))
    for row in range(70):
        experts.add(alone, x, TaskRows([(0, range(row, row + 1))]))
    for step in (torch.arange(0, 70, 2), torch.arange(1, 70, 2)):
        experts.add(scattered, x, TaskRows([(0, step)]))
    assert torch.equal(together, alone) and torch.equal(together, scattered) and not torch.equal(together, y)


def test_several_experts_at_one_place_are_rounded_once(variant: None) -> None:
    """Two that take away almost all of each other leave what float32 leaves."""
    a, b = bf16(1, 32, 32, seed=0), bf16(1, 32, 32, seed=1)
    place = torch.zeros(1, 2, dtype=torch.int32)
    nearly = b.clone()
    nearly[0, 0, 0] = -nearly[0, 0, 0]
    experts = pair([(0, SparseBlocks(place, a, b)), (1, SparseBlocks(place, a, -nearly))], [[0, 1]])
    x, y = bf16(1, 32, seed=2), torch.zeros(1, 32, dtype=torch.bfloat16)
    experts.add(y, x, TaskRows.of([(0, None)], 1))
    expected = (2 * b[0, 0, 0].float() * (x.float() @ a[0, 0].float()).bfloat16().float()).bfloat16()
    assert y[0, 1:].abs().max() < 1e-4 and torch.allclose(y[0, 0], expected, rtol=0.01)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_stays_none(variant: None, value: float) -> None:
    experts = pair(
        [(0, SparseBlocks(torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 16, 16), torch.ones(1, 16, 16)))], [[0]]
    )
    x = torch.ones(3, 16, dtype=torch.bfloat16)
    x[1, 5] = value
    y = torch.zeros(3, 16, dtype=torch.bfloat16)
    experts.add(y, x, TaskRows.of([(0, None)], 3))
    assert not y[1].isfinite().any() and torch.equal(y[[0, 2]], torch.full((2, 16), 256.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("variant", VARIANTS[:1], indirect=True)
@pytest.mark.parametrize("is_cut", [True, False])
def test_tiles_are_left_as_they_were_found(variant: None, tmp_path: Path, is_cut: bool) -> None:
    """Others remember how they have cut them on this thread."""
    source = b"""void put(const char (*c)[64]) { __asm__ volatile("ldtilecfg %0" : : "m"(*c)); }
                 void take(char (*c)[64]) { __asm__ volatile("sttilecfg %0" : "=m"(*c)); }"""
    compiler._compile(["cc", "-shared", "-fPIC"], source, tmp_path / "cut.so")
    cut = ctypes.PyDLL(str(tmp_path / "cut.so"))
    given = bytearray(64)
    if is_cut:
        given[0], given[16], given[48] = 1, 12, 3  # palette, bytes of a row and rows of tile 0
    found = ctypes.create_string_buffer(64)
    experts = pair(present(random_experts((64, 64), [1], [32], 64)), [[0]])
    x, y = bf16(40, 64, seed=1), torch.zeros(40, 64, dtype=torch.bfloat16)
    cut.put(bytes(given))
    experts.add(y, x, TaskRows.of([(0, None)], 40))
    cut.take(found)
    cut.put(bytes(64))
    assert found.raw == given and y.any()


@pytest.mark.parametrize(
    ("num_tokens", "d_out", "d_in", "rows", "task"),
    [(9, 64, 96, [0, 9], 0), (9, 64, 96, [9], 0), (9, 32, 96, [0], 0), (9, 64, 64, [0], 0), (9, 64, 96, [0], 1)],
)
def test_nothing_outside_is_read_or_written(
    variant: None, num_tokens: int, d_out: int, d_in: int, rows: list[int], task: int
) -> None:
    """The product in C trusts its addresses: what does not fit stops before it."""
    experts = pair(present(random_experts((64, 96), [6], [16], 32)), [[0]])
    x, y = bf16(num_tokens, d_in, seed=1), bf16(num_tokens, d_out, seed=2)
    with pytest.raises(AssertionError):
        experts.add(y, x, TaskRows.of([(task, torch.tensor(rows))], num_tokens))


@needs_product
def test_memory_is_the_banks_own_and_where_it_lies() -> None:
    experts = random_experts((192, 576), [13, 13], [32, 32], 64)
    packed = packed_in_bfloat16(experts, [[0], [1], [0, 1]], (192, 576))
    assert isinstance(packed, PairedExperts)
    values = sum(expert.num_values for expert in experts if expert is not None)
    entries = 26 + 26  # each task's own, and both of the third one's
    assert 2 * values <= packed.nbytes <= 2 * values + 26 * 8 + entries * 24 + 4 * 8


@needs_product
def test_a_size_is_told_without_a_look_at_every_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for between two steps."""
    packed = packed_in_bfloat16(random_experts((192, 576), [13, 13], [32, 32], 64), [[0], [1]], (192, 576))
    size = packed.nbytes
    monkeypatch.delattr(PairedBlocks, "nbytes")
    assert packed.nbytes == size > 0


@needs_product
def test_what_it_can_take() -> None:
    def takes(rank: int, size: int, dtype: torch.dtype = torch.bfloat16) -> bool:
        return can_pair(SparseBlocks(torch.zeros(1, 2), torch.ones(1, rank, size), torch.ones(1, size, rank)), dtype)

    assert takes(8, 16) and takes(MOST, MOST) and takes(1, 48)
    assert not takes(8, 24) and not takes(8, 8) and not takes(MOST + 1, 64) and not takes(8, MOST + 16)
    assert not takes(8, 16, torch.float32)


@settings(max_examples=30, deadline=None)
@given(size=st.sampled_from([16, 48, 64]), rank=st.sampled_from([1, 16, 40]), count=st.integers(1, 6))
def test_pairing_can_be_undone(size: int, rank: int, count: int) -> None:
    """Bit for bit, with zeros where the rank was padded: for a projection on which some other expert has no pairs."""
    [(_, mine)] = present(random_experts((2 * size, 3 * size), [count], [rank], size))
    back = PairedBlocks.of(mine).sparse()
    assert torch.equal(back.blocks, mine.blocks)
    assert torch.equal(back.a[:, :rank], mine.a) and torch.equal(back.b[..., :rank], mine.b)
    assert not back.a[:, rank:].any() and not back.b[..., rank:].any()


@needs_product
def test_beside_an_expert_that_cannot_be_paired_all_are_torchs() -> None:
    small, large = present(random_experts((64, 64), [2, 1], [8, MOST + 16], 16, seed=1))
    experts = [small[1], large[1]]
    packed = packed_in_bfloat16(experts, [[0], [1]], (64, 64))  # type: ignore[arg-type]
    assert isinstance(packed, ProjectionExperts)
    x = bf16(5, 64, seed=2)
    for task, mine in enumerate(experts):
        y = torch.zeros(5, 64, dtype=torch.bfloat16)
        add_routed(y, x, packed, None, task, None)
        expected = x.float() @ mine.dense((64, 64)).T
        assert (y.float() - expected).abs().max() <= 0.03 * expected.abs().max()


@needs_product
def test_mixtures_are_torchs() -> None:
    experts = random_experts((64, 64), [1], [8], 64)
    assert isinstance(packed_in_bfloat16(experts, [[0]], (64, 64), with_mixtures=True), ProjectionExperts)


@pytest.mark.parametrize("damage", ["no compiler", "it fails", "not a library", "wrong results", "an older processor"])
def test_without_it_torch_has_the_experts(fresh: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    if damage == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif damage == "it fails":
        monkeypatch.setattr(paired, "COMMON_FLAGS", ("--no-such-flag",))
    elif damage == "not a library":
        monkeypatch.setattr(compiler, "_compile", lambda command, source, target: target.write_bytes(b"\x7fELF"))
    elif damage == "wrong results":
        monkeypatch.setattr(paired, "_load", lambda flags: lambda *_: None)
    else:
        monkeypatch.setattr(compiler, "processor_flags", set)
    experts = random_experts((64, 64), [1], [8], 64)
    packed = packed_in_bfloat16(experts, [[0]], (64, 64))
    assert product() is None and isinstance(packed, ProjectionExperts)
    assert not fresh.is_dir() or [path for path in fresh.iterdir() if path.stat().st_size == 0] == []


@needs_product
def test_a_system_that_keeps_the_tiles_to_itself(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then dot products do it, where the processor has those."""
    original, asked = compiler.library, []

    def refusing(source: str, flags: tuple[str, ...]) -> ctypes.PyDLL:
        library = original(source, flags)
        asked.append("-mamx-tile" in flags)
        if asked[-1]:
            library.seta_prepare = lambda: -1  # type: ignore[attr-defined]
        return library

    monkeypatch.setattr(compiler, "library", refusing)
    assert product() is not None and asked[-1] is False
