"""How a server process ends: at any moment, with one sentence if something is wrong, and with nothing left behind.

An engine that dies: `tests/chaos/test_kills.py`.
"""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.process import (
    REPO,
    ServerProcess,
    free_port,
    serve_command,
    start_server,
    status_of,
    stop_server,
    wait_until_ready,
)
from tests.server.requests import ask

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(model_dir: Path, demo_bank: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a server; whatever the test does to it, no process survives the test."""
    started: list[ServerProcess] = []

    def start(*options: str) -> ServerProcess:
        started.append(start_server(model_dir, demo_bank, tmp_path / "log", *options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            for process in [*server.root.children(recursive=True), server.root]:
                process.kill()


def wait_for(url: str, status: int | None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while (found := status_of(url)) != status:
        assert time.monotonic() < deadline, f"{url} answers {found}, not {status}"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading(start: Start, number: signal.Signals) -> None:
    server = start()
    wait_for(f"{server.url}/health", 200)
    assert status_of(f"{server.url}/ready") == 503
    stop_server(server, number)
    assert server.printed().splitlines()[-1] == "seta: stopping"


def test_running_streams_finish_or_are_told_that_the_server_stops(start: Start) -> None:
    """Up to the deadline; nobody new is let in, and the exit status is 0."""
    server = start("--shutdown-seconds", "4")
    wait_until_ready(server)
    with stream(server, max_tokens=1800) as long, stream(server, max_tokens=20) as short:
        assert all(next(lines).startswith('data: {"id"') for lines in (long, short))
        server.process.send_signal(signal.SIGTERM)
        wait_for(f"{server.url}/ready", None)
        assert server.process.wait(60) == 0, server.printed()
        assert list(short)[-1] == "data: [DONE]"
        assert list(long)[-1].startswith('data: {"error": {"message": "The server is stopping"')
    assert server.printed().splitlines()[-1] == "seta: stopping"


@contextmanager
def stream(server: ServerProcess, **fields: int) -> Iterator[Iterator[str]]:
    """The lines of an answer that does not end before `max_tokens`."""
    body = ask("Count to a thousand.", ignore_eos=True, stream=True, **fields)
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=300) as response:
        yield (line for line in response.iter_lines() if line)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--kv-cache-gib", "0.001", r"the engine did not start: ValueError: .* --kv-cache-gib"),
        ("--max-model-len", "1000000", r"vLLM refuses the configuration: .*max_model_len"),
        ("--tool-call-parser", "nobodys", r"--tool-call-parser: there is no 'nobodys'; choose one of .*hermes"),
    ],
)
def test_an_engine_that_cannot_start_is_one_sentence(
    model_dir: Path, demo_bank: Path, option: str, value: str, says: str
) -> None:
    command = [*serve_command(model_dir, demo_bank, free_port()), option, value]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(f"seta: {says}", line)
