"""The compiled product of a few rows: equal to a slow reference, the same for a row whatever is beside it; and what
happens where it cannot be compiled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seta_runtime.ops import few_rows
from seta_runtime.ops.few_rows import AddFewRows, add_few_rows, fits

needs_compiled = pytest.mark.skipif(
    not few_rows._has_bfloat16_dots() or shutil.which("cc") is None,
    reason="the processor has no dot products of bfloat16, or there is no C compiler",
)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing compiled yet in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    add_few_rows.cache_clear()
    yield tmp_path / "seta"
    add_few_rows.cache_clear()


def compiled() -> AddFewRows:
    found = add_few_rows()
    assert found is not None
    return found


def bf16(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@needs_compiled
@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(1, 40),
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 140),
    all_rows=st.booleans(),
    data=st.data(),
)
def test_against_a_slow_reference(num_tokens: int, d_out: int, d_in: int, all_rows: bool, data: st.DataObject) -> None:
    x = bf16(num_tokens, d_in + 3, seed=1)[:, 2 : 2 + d_in]
    packed = bf16(num_tokens, d_out + 5, seed=2)
    delta = bf16(d_out, d_in, seed=3)
    rows = None
    if not all_rows:
        rows = torch.tensor(data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=1, unique=True)))
    before = packed.clone()
    compiled()(packed[:, 4 : 4 + d_out], x, delta, rows)
    picked = range(num_tokens) if rows is None else rows.tolist()
    expected = before.clone()
    for row in picked:
        for out in range(d_out):
            products = [float(a) * float(b) for a, b in zip(x[row], delta[out], strict=True)]
            expected[row, 4 + out] = float(before[row, 4 + out]) + sum(products)
    changed = torch.zeros_like(packed, dtype=torch.bool)
    changed[list(picked), 4 : 4 + d_out] = True
    assert torch.equal(packed[~changed], before[~changed])
    assert torch.allclose(packed.float(), expected.float(), rtol=0.01, atol=0.02)


@needs_compiled
def test_a_row_is_the_same_alone_and_beside_others() -> None:
    x, delta, y = bf16(32, 576, seed=1), bf16(192, 576, seed=2), bf16(32, 192, seed=3)
    together, alone = y.clone(), y.clone()
    compiled()(together, x, delta, None)
    for row in range(32):
        compiled()(alone, x, delta, torch.tensor([row]))
    assert torch.equal(together, alone)


@needs_compiled
@pytest.mark.parametrize(
    ("value", "added", "expected"),
    [
        (1.0, 2.0**-8, 1.0),  # halfway between two numbers: to the even one
        (1.0 + 2.0**-7, 2.0**-8, 1.0 + 2.0**-6),
        (1.0, float("inf"), float("inf")),
        (1.0, float("nan"), float("nan")),
        (3e38, 3e38, float("inf")),
    ],
)
def test_rounding(value: float, added: float, expected: float) -> None:
    y = torch.tensor([[value]], dtype=torch.bfloat16)
    compiled()(y, torch.tensor([[added]], dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16), None)
    assert torch.equal(y, torch.tensor([[expected]], dtype=torch.bfloat16)) or (y.isnan() and expected != expected)


def test_what_it_can_take() -> None:
    y, x, delta = bf16(8, 4, seed=0), bf16(8, 6, seed=0), bf16(4, 6, seed=0)
    assert fits(y, x, delta, few_rows.MAX_ROWS)
    assert not fits(y, x, delta, few_rows.MAX_ROWS + 1)
    assert not fits(y.float(), x, delta, 8) and not fits(y, x, delta.float(), 8)
    assert not fits(y.T.contiguous().T, x, delta, 8) and not fits(y, x, delta.T.contiguous().T, 8)


@needs_compiled
def test_compiled_once_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()
    assert [path.suffix for path in fresh.iterdir()] == [".so"]
    add_few_rows.cache_clear()
    monkeypatch.setattr(few_rows, "_compile", lambda *_: pytest.fail("compiled again"))
    compiled()


@needs_compiled
def test_a_directory_of_others_is_not_trusted(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    compiled()
    assert list(fresh.iterdir()) == []


@needs_compiled
@pytest.mark.parametrize("damage", ["no compiler", "it fails", "not a library", "wrong results"])
def test_without_it_torch_does_the_product(fresh: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    if damage == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif damage == "it fails":
        monkeypatch.setattr(few_rows, "FLAGS", ("--no-such-flag",))
    elif damage == "not a library":
        monkeypatch.setattr(few_rows, "_compile", lambda compiler, source, target: target.write_bytes(b"\x7fELF"))
    else:
        monkeypatch.setattr(few_rows, "_product", lambda library: lambda y, x, delta, rows: None)
    assert add_few_rows() is None
    assert not fresh.is_dir() or [p for p in fresh.iterdir() if p.stat().st_size == 0] == []


def test_an_older_processor(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "_has_bfloat16_dots", lambda: False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was compiled"))
    assert add_few_rows() is None
