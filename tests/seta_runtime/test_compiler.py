"""C that is compiled where it is served: once, kept, and in no place that others can write to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from seta_runtime.ops import compiler

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or "avx512_bf16" not in compiler.processor_flags(),
    reason="the processor or the compiler is missing",
)
SOURCE, FLAGS = "sub_blocks.c", ("-mavx512f", "-mavx512vl", "-mavx512bf16")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "seta"


def test_compiled_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.library(SOURCE, FLAGS)
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    compiler.library(SOURCE, FLAGS)


def test_a_damaged_one_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(compiler, "_compile", lambda command, source, target: target.write_bytes(b""))
        with pytest.raises(OSError, match="too short"):
            compiler.library(SOURCE, FLAGS)
    assert compiler.library(SOURCE, FLAGS).seta_prepare() == 0
    assert [path.stat().st_size > 0 for path in cache.iterdir()] == [True]


def test_other_flags_are_another_library(cache: Path) -> None:
    compiler.library(SOURCE, FLAGS)
    compiler.library(SOURCE, (*FLAGS, "-fno-math-errno"))
    assert len(list(cache.iterdir())) == 2


def test_a_directory_of_others_is_not_trusted(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    compiler.library(SOURCE, FLAGS)
    assert list(cache.iterdir()) == []
