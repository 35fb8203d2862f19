"""Processes that are killed: the trainer at any moment, the server around the one write that decides, the engine."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from adapters.admin_client import AdminError
from adapters.bank import Bank
from tests.chaos.clients import Crowd
from tests.chaos.conftest import CURRENT, Live, Start
from tests.server.process import NAME, REPO, start_server, stop_server, wait_until_ready

NUM_KILLS = 10


def learn_command(live: Live, model: Path, data: Path, task: str) -> list[str]:
    rows = [
        {"task": task, "prompt": f"What does ship {n} of the {task} fleet carry?", "answer": "tin"} for n in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "server.cli", "learn", "--bank", str(live.bank.root), "--model", str(model)]
    command += ["--task", str(data), "--steps", "3", "--batch-size", "4"]
    return [*command, "--activate", live.process.admin_url]


def test_learning_is_killed_at_random_moments(live: Live, model_dir: Path, tmp_path: Path, prompts: list[str]) -> None:
    """Nobody notices; the bank stays whole; and the next attempt that is left alone goes live."""
    crowd, rng = Crowd(live.url, NAME, prompts, num_clients=2), random.Random(2)
    with crowd.running():
        start = time.monotonic()
        command = learn_command(live, model_dir, tmp_path / "first.jsonl", "first")
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "is live, activated in" in done.stdout
        whole_seconds, serving = time.monotonic() - start, live.serving
        assert serving == CURRENT + 1
        for kill in range(NUM_KILLS):
            command = learn_command(live, model_dir, tmp_path / f"{kill}.jsonl", f"killed{kill}")
            learning = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0, whole_seconds))
            learning.kill()
            learning.wait()
            check_whole(live)
        command = learn_command(live, model_dir, tmp_path / "last.jsonl", "last")
        assert subprocess.run(command, cwd=REPO, capture_output=True).returncode == 0
        assert live.serving == live.bank.current() == max(live.bank.generations())
    assert crowd.failed == []


def check_whole(live: Live) -> None:
    """The bank is whole; what serves is its CURRENT: the old generation, or the new one if it was activated."""
    assert live.bank.verify() == []
    assert live.serving == live.bank.current()


@pytest.mark.parametrize(("fault", "serves"), [("die-before-current", CURRENT), ("die-after-current", CURRENT - 1)])
def test_the_server_is_killed_around_the_write_of_current(
    start: Start, model_dir: Path, tmp_path: Path, fault: str, serves: int
) -> None:
    """Before it the old generation comes back, after it the new one: never half of either."""
    live = start()
    (live.faults / fault).write_text("")
    with pytest.raises(AdminError):
        live.admin.activate(CURRENT - 1)
    assert live.process.process.wait(60) == -signal.SIGKILL
    (live.faults / fault).unlink()
    assert Bank.open(live.bank.root).verify() == []
    again = start_server(model_dir, live.bank.root, tmp_path / "again")
    try:
        wait_until_ready(again)
        assert httpx.get(f"{again.url}/ready").json()["generation"] == serves
    finally:
        stop_server(again)


def test_a_dead_engine_is_told_and_ends_the_process(live: Live, prompts: list[str]) -> None:
    """Running requests get a proper error, /ready says no within 5 s, the exit status is not 0."""
    crowd = Crowd(live.url, NAME, prompts, num_clients=4)
    descendants = live.process.root.children(recursive=True)
    engine = next(process for process in descendants if "EngineCore" in " ".join(process.cmdline()))
    with crowd.running():
        crowd.wait_for(4)
        os.kill(engine.pid, signal.SIGKILL)
        killed = time.monotonic()
        while httpx.get(f"{live.url}/ready").status_code == 200:
            assert time.monotonic() - killed < 5
        assert httpx.get(f"{live.url}/v1/models").json()["error"]["code"] == "engine_dead"
        before = len(crowd.failed)
        crowd.wait_for(4)
    assert live.process.process.wait(60) == 1
    _, left = psutil.wait_procs(descendants, timeout=5)
    assert not left
    assert live.process.printed().splitlines()[-1].startswith("seta: the engine stopped")
    answered = [error for error in crowd.failed[:before] if "503" in error or "engine_dead" in error]
    assert answered, crowd.failed
