"""From the command `seta serve` to `/ready`: the whole server in processes of its own, over HTTP."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

LIMIT_SECONDS = 600.0


def server_seconds(model: str, bank: Path, rounds: int) -> list[float]:
    """One unrecorded start, which warms the files, then `rounds` of them. Raises RuntimeError if one fails."""
    return [_one_start(model, bank) for _ in range(rounds + 1)][1:]


def _one_start(model: str, bank: Path) -> float:
    port = _free_port()
    command = [sys.executable, "-m", "server.cli", "serve", "--model", model, "--bank", str(bank), "--port", str(port)]
    start = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(port):
            if server.poll() is not None or time.monotonic() - start > LIMIT_SECONDS:
                raise RuntimeError(f"the server did not become ready; run it to see why: {' '.join(command[1:])}")
            time.sleep(0.05)
        return round(time.monotonic() - start, 2)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
