"""Real server processes for tests: start one, wait for it, end it and look whether anything is left."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

REPO = Path(__file__).resolve().parents[2]
NAME = "demo"
READY_SECONDS = 600.0
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class ServerProcess:
    """`python -m server.cli serve`, running; `log` holds everything it printed."""

    process: "subprocess.Popen[bytes]"
    url: str
    admin_url: str
    log: Path

    @property
    def root(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")


def start_server(model: Path, bank: Path, log: Path, *options: str) -> ServerProcess:
    port, admin_port = free_port(), free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*serve_command(model, bank, port, admin_port), *options], cwd=REPO, stdout=out, stderr=subprocess.STDOUT
        )
    return ServerProcess(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", log)


def serve_command(model: Path, bank: Path, port: int, admin_port: int = 0) -> list[str]:
    """Without an admin port there is no admin listener."""
    command = [sys.executable, "-m", "server.cli", "serve", "--model", str(model), "--bank", str(bank)]
    command += ["--port", str(port), "--admin-port", str(admin_port)]
    return [*command, "--name", NAME, "--max-model-len", "2048", "--kv-cache-gib", "1"]


def wait_until_ready(server: ServerProcess) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            pytest.fail(f"the server ended with {server.process.returncode}:\n{server.printed()}")
        if status_of(f"{server.url}/ready") == 200:
            return
        time.sleep(0.2)
    server.process.kill()
    pytest.fail(f"not ready after {READY_SECONDS} s:\n{server.printed()}")


def stop_server(server: ServerProcess, how: signal.Signals = signal.SIGTERM) -> None:
    """End it and check how it ended: by itself, with status 0, and with all of its processes."""
    if server.process.poll() is not None:
        return
    descendants = server.root.children(recursive=True)
    server.process.send_signal(how)
    try:
        assert server.process.wait(STOP_SECONDS) == 0, server.printed()
        _, left = psutil.wait_procs(descendants, timeout=5)
        assert not left, f"left behind: {left}"
    finally:
        for process in [process for process in descendants if process.is_running()]:
            process.kill()
        server.process.kill()


def status_of(url: str) -> int | None:
    """The HTTP status, or None where nothing answers."""
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
