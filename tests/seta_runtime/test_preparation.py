"""Loading in a thread: nothing waits for it, what it finds is handed over once, what it fails with is told."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.bank import BankCorrupt
from seta_runtime.preparation import Preparations

LOADED: Any = SimpleNamespace(nbytes=123)


def finished(preparations: Preparations, adapter_id: int) -> dict[str, Any]:
    """The state once it is no longer loading."""
    deadline = time.monotonic() + 10
    while (state := preparations.state(adapter_id))["state"] == "loading":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return state


def test_nobody_waits_and_the_result_is_handed_over_once() -> None:
    may_finish, seen = threading.Event(), []

    def load(*arguments: Any) -> Any:
        seen.append(arguments)
        may_finish.wait(10)
        return LOADED

    preparations = Preparations(load)
    preparations.start(7, 4, "digest")
    assert preparations.state(7) == {"state": "loading"}
    assert preparations.take(7) is None
    may_finish.set()
    assert finished(preparations, 7) == {"state": "ready", "resident_bytes": 123}
    assert preparations.take(7) is LOADED
    assert preparations.take(7) is None
    assert seen == [(7, 4, "digest")]


@pytest.mark.parametrize(
    ("error", "message"),
    [(BankCorrupt("its bytes were altered"), "its bytes were altered"), (OSError("/secret/path"), "log says why")],
)
def test_a_failure_is_told_without_a_path(error: Exception, message: str) -> None:
    def load(*_: Any) -> Any:
        raise error

    preparations = Preparations(load)
    preparations.start(1, 4, "digest")
    state = finished(preparations, 1)
    assert (state["state"], state["error"]) == ("failed", type(error).__name__)
    assert message in state["message"] and "/secret" not in state["message"]
    assert preparations.take(1) is None


def test_what_is_discarded_is_never_handed_over() -> None:
    may_finish = threading.Event()
    preparations = Preparations(lambda *_: may_finish.wait(10) and LOADED)
    preparations.start(1, 4, "digest")
    preparations.discard(1)
    may_finish.set()
    assert preparations.state(1)["state"] == "failed"
    assert preparations.take(1) is None


def test_the_thread_steps_aside() -> None:
    def load(*_: Any) -> Any:
        return SimpleNamespace(nbytes=os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    preparations = Preparations(load)
    preparations.start(1, 4, "digest")
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert finished(preparations, 1)["resident_bytes"] > ours or ours > 9
