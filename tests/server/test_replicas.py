"""Activating on every replica: all or none, and what is said when one fails in between."""

import socket
from typing import Any

import pytest

from adapters.admin_client import AdminError
from server.replicas import activate_all, addresses


class Replica:
    """A server's admin API as far as this needs it; `fails` is the call that it refuses."""

    def __init__(self, number: int, fails: str = "", serving: int = 4, pinned: tuple[int, ...] = ()) -> None:
        self.url = f"http://10.0.0.{number}:8001"
        self.fails, self.serving, self.pinned = fails, serving, set(pinned)
        self.calls: list[str] = []

    def generations(self) -> dict[str, Any]:
        self._call("generations")
        return {
            "serving": self.serving,
            "generations": [{"generation": one, "is_pinned": one in self.pinned} for one in range(6)],
        }

    def pin(self, generation: int) -> None:
        self._call("pin")
        self.pinned.add(generation)

    def unpin(self, generation: int) -> None:
        self._call("unpin")
        self.pinned.discard(generation)

    def activate(self, generation: int) -> dict[str, int]:
        self._call("activate")
        previous, self.serving = self.serving, generation
        return {"serving": generation, "previous": previous}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise AdminError("disk full", 507, "disk_full")


def activate(*replicas: Replica, expected: int | None = None) -> list[str]:
    said: list[str] = []
    activate_all(replicas, 5, expected, said.append)  # type: ignore[arg-type]
    return said


def state(*replicas: Replica) -> list[tuple[int, set[int]]]:
    return [(one.serving, one.pinned) for one in replicas]


def test_all_serve_it_and_nothing_stays_pinned() -> None:
    replicas = Replica(1), Replica(2, pinned=(3,)), Replica(3)
    said = activate(*replicas, expected=4)
    assert state(*replicas) == [(5, set()), (5, {3}), (5, set())]
    assert said[0] == "http://10.0.0.1:8001: generation 5 serves, 4 did before"


def test_it_is_in_every_memory_before_it_serves_anywhere() -> None:
    calls: list[str] = []
    replicas = Replica(1), Replica(2)
    for replica in replicas:
        replica.calls = calls
    activate(*replicas)
    assert calls.index("activate") > max(at for at, name in enumerate(calls) if name == "pin")


def test_what_a_replica_cannot_load_changes_none() -> None:
    replicas = Replica(1), Replica(2, fails="pin"), Replica(3)
    with pytest.raises(AdminError, match=r"http://10.0.0.2:8001: disk full; nothing has changed") as caught:
        activate(*replicas)
    assert caught.value.code == "disk_full"
    assert state(*replicas) == [(4, set())] * 3
    assert "activate" not in replicas[0].calls


def test_another_generation_than_the_expected_one_changes_none() -> None:
    replicas = Replica(1), Replica(2, serving=3)
    with pytest.raises(AdminError, match="http://10.0.0.2:8001 serves generation 3, not 4"):
        activate(*replicas, expected=4)
    assert state(*replicas) == [(4, set()), (3, set())]


def test_the_order_can_be_given_again_after_half_of_it() -> None:
    replicas = Replica(1), Replica(2, fails="activate")
    with pytest.raises(AdminError, match="serves on 1 of 2 servers, not on http://10.0.0.2:8001: disk full"):
        activate(*replicas, expected=4)
    assert state(*replicas) == [(5, set()), (4, set())]
    replicas[1].fails = ""
    said = activate(*replicas, expected=4)
    assert said[0].endswith("generation 5 serves, already")
    assert state(*replicas) == [(5, set())] * 2


def test_what_was_pinned_before_stays_pinned() -> None:
    replica = Replica(1, pinned=(5,))
    activate(replica)
    assert replica.pinned == {5}


def test_a_name_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(host: str, port: int, type: int) -> list[Any]:
        assert (host, port) == ("seta-admin", 8001)
        hosts = ["10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.1"]
        return [(socket.AF_INET, type, 6, "", (one, port)) for one in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert addresses("http://seta-admin:8001") == [
        "http://10.0.0.1:8001",
        "http://10.0.0.2:8001",
        "http://[fd00::1]:8001",
    ]


def test_a_name_without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    with pytest.raises(AdminError, match="nowhere has no address"):
        addresses("http://nowhere:8001")
    with pytest.raises(AdminError, match="takes an http:// URL"):
        addresses("https://seta-admin:8001")
