"""Cores for the ranks that share each layer."""

import os

import pytest

from server import environment
from server.config import ServeError

BINDING = "VLLM_CPU_OMP_THREADS_BIND"


def bound(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], num_ranks: int, num_nodes: int = 1, num_replicas: int = 1
) -> str | None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(environment, "_num_numa_nodes", lambda: num_nodes)
    environment.bind_ranks(num_ranks, num_replicas)
    return os.environ.get(BINDING)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set, then unset, so that what a test sets is undone."""
    monkeypatch.setenv(BINDING, "")
    monkeypatch.delenv(BINDING)


def test_the_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bound(monkeypatch, {7, 4, 5, 6, 9}, 2) == "4,5|6,7"


@pytest.mark.parametrize(("num_ranks", "num_nodes"), [(1, 1), (2, 2), (2, 4)])
def test_vllm_decides_where_it_can(monkeypatch: pytest.MonkeyPatch, num_ranks: int, num_nodes: int) -> None:
    assert bound(monkeypatch, {0, 1, 2, 3}, num_ranks, num_nodes) is None


def test_the_users_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINDING, "0|3")
    assert bound(monkeypatch, {0, 1, 2, 3}, 2) == "0|3"


def test_each_replica_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bound(monkeypatch, {0, 1, 2, 3}, 1, num_replicas=2) == "0,1|2,3"
    monkeypatch.delenv(BINDING)
    assert bound(monkeypatch, {0, 1, 2, 3}, 2, num_replicas=2) == "0|1|2|3"


def test_more_ranks_than_cores_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ServeError, match="3 workers found .tensor parallelism 3, data parallelism 1., this process may use 2 cores"
    ):
        bound(monkeypatch, {0, 1}, 3)
