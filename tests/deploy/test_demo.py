"""`make demo` with a stand-in for the server: what it prints works, and it never leaves a process behind."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy import demo, server_process

ROOT = Path(__file__).parent.parent.parent
# A server with a worker in its group that ignores what it is asked; both say who they are.
SERVER = """
import http.server, os, pathlib, signal, subprocess, sys
stubborn = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; time.sleep(120)"
worker = subprocess.Popen([sys.executable, "-c", stubborn])
pathlib.Path(sys.argv[2]).write_text(f"{os.getpid()} {worker.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): pass
if sys.argv[3] == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[3] == "dies":
    sys.exit(3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DEMO = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore them, as nohup does
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from deploy import bootstrap, demo, server_process
port, server, pids, kind = int(sys.argv[1]), *sys.argv[2:]
demo.check_bank = demo.make_model = bootstrap.ensure = lambda: None
demo.command = lambda port: [sys.executable, "-c", server, str(port), pids, kind]
server_process.ESCALATION = tuple((number, group, 0.5) for number, group, _ in server_process.ESCALATION)
sys.exit(bootstrap.run(lambda: demo.demo(port)))
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return result


def is_running(pid: int) -> bool:
    """A zombie, waiting for its new parent, no longer runs."""
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


class Run:
    """A demo in a process of its own."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._pids = directory / "pids"
        command = [sys.executable, "-c", DEMO, str(free_port()), SERVER, str(self._pids), kind]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **streams)

    def wait_until_started(self) -> list[int]:
        wait_for(lambda: self._pids.exists() and self._pids.read_text())
        return [int(pid) for pid in self._pids.read_text().split()]

    def wait_until_ready(self) -> list[int]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "answers on" in line:
                return self.wait_until_started()
        raise AssertionError("the demo ended before it was ready")


@pytest.fixture
def start(tmp_path):
    runs: list[Run] = []

    def start_one(kind: str) -> Run:
        runs.append(Run(tmp_path, kind))
        return runs[-1]

    yield start_one
    for run in runs:
        run.process.kill()
        run.process.communicate()


@pytest.mark.parametrize("kind", ["polite", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(start, kind, number):
    run = start(kind)
    pids = run.wait_until_ready()
    run.process.send_signal(number)
    output, _ = run.process.communicate(timeout=30)
    assert run.process.returncode == 0, output
    assert not any(map(is_running, pids))


def test_ctrl_c_while_loading_ends_everything(start, tmp_path):
    run = start("stubborn")
    pids = run.wait_until_started()
    run.process.send_signal(signal.SIGINT)
    run.process.communicate(timeout=30)
    assert not any(map(is_running, pids))


def test_the_server_ends_when_the_demo_is_killed_outright(start):
    run = start("polite")
    server, worker = run.wait_until_ready()
    run.process.kill()
    wait_for(lambda: not is_running(server))
    os.kill(worker, signal.SIGKILL)  # the stand-in's worker outlives its parent; the real server ends its own


def test_a_server_that_dies_is_a_sentence(start):
    run = start("dies")
    output, _ = run.process.communicate(timeout=30)
    assert run.process.returncode == 1
    assert "error: the server ended before it was ready" in output


def test_a_process_that_is_gone_is_left_alone():
    process = server_process.start([sys.executable, "-c", ""], ROOT)
    process.wait()
    server_process.stop(process)
    assert not server_process.is_alive(process)


def test_the_lines_printed_are_valid():
    text = demo.usage(8123)
    curl = shlex.split(next(line for line in text.splitlines() if line.startswith("curl")))
    assert "http://127.0.0.1:8123/v1/chat/completions" in curl
    body = json.loads(curl[curl.index("-d") + 1])
    assert body["messages"][0]["content"] == demo.examples()[0][0]
    snippet = re.search(r"<<'EOF'\n(.*?)\nEOF\n", text, re.DOTALL)
    assert snippet is not None
    compile(snippet[1], "snippet", "exec")
    assert f"expected answer: {demo.examples()[1][1]}" in text


def test_examples_name_no_task_and_cover_all():
    rows = [json.loads(line) for line in demo.EXAMPLES.read_text().splitlines()]
    assert sorted(row["task"] for row in rows) == ["foods", "icd10", "licences", "smart_home"]
    assert all(row["prompt"].count("\n") == 1 and row["answer"] for row in rows)


def test_no_bank(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "BANK", tmp_path)
    with pytest.raises(demo.SetupError, match="git checkout demo/bank"):
        demo.check_bank()


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_number_that_is_no_port(monkeypatch, port):
    monkeypatch.setattr(sys, "argv", ["demo", "--port", port])
    with pytest.raises(demo.SetupError, match="is no port"):
        demo.main()
