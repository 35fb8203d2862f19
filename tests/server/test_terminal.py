import subprocess
import sys

import pytest

from server.terminal import Terminal

WORKER = "(Worker pid=7) ERROR 11-21 [w.py:1]"
CORE = "(EngineCore pid=5) ERROR 11-21 [core.py:2]"


def terminal_with(*lines: str) -> Terminal:
    terminal = Terminal(is_quiet=False)
    terminal._held.extend(lines)
    return terminal


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([f"{CORE} Traceback (most recent call last):", f"{CORE} ValueError: too big"], "ValueError: too big"),
        ([f"{CORE} torch.OutOfMemoryError: no room"], "OutOfMemoryError: no room"),
        (
            [f"{CORE} seta_runtime.config.UnsupportedEngine: x", "adapters.bank.errors.BankMismatch: other base"],
            "UnsupportedEngine: x",
        ),
        (
            [
                f"{WORKER} RuntimeError: the first",
                f"{CORE} Exception: WorkerProc initialization failed due to an exception. See stack trace",
                "RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "RuntimeError: the first",
        ),
        (["nothing of the kind"], None),
    ],
)
def test_the_cause_is_the_first_exception(lines: list[str], cause: str | None) -> None:
    assert terminal_with(*lines).cause() == cause


SCRIPT = """
import os, subprocess, sys, time
from server.terminal import Terminal
terminal = Terminal(is_quiet=True)
terminal.say("loading")
print("noise from a library", flush=True)
subprocess.run([sys.executable, "-c", "print('noise from a child')"])
time.sleep(0.3)
terminal.release()
subprocess.run([sys.executable, "-c", "print('a warning from a child')"])
time.sleep(0.3)
terminal.say("ready")
"""


def test_others_are_held_back_until_the_server_is_ready() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "seta: loading\nseta: ready\n"
    assert done.stderr == "a warning from a child\n"
