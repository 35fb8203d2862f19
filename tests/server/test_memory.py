from pathlib import Path

import pytest

from server.memory import GIB, available_bytes, default_kv_cache_gib


@pytest.mark.parametrize(("available_gib", "kv_gib"), [(1, 0.5), (8, 1.0), (22, 2.75), (1000, 4.0)])
def test_kv_cache_is_a_bounded_share(available_gib: int, kv_gib: float) -> None:
    assert default_kv_cache_gib(available_gib * GIB) == kv_gib


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    return tmp_path


def test_without_a_container_the_kernel_decides(proc: Path, tmp_path: Path) -> None:
    assert available_bytes(proc, tmp_path / "none") == 8 * GIB


@pytest.mark.parametrize(("limit", "expected_gib"), [("max", 8), (str(3 * GIB), 2), (str(100 * GIB), 8)])
def test_a_container_limit_counts(proc: Path, tmp_path: Path, limit: str, expected_gib: int) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert available_bytes(proc, tmp_path) == expected_gib * GIB
