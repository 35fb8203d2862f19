"""Processes made by the fork server: they must be as a spawned one would be, and its own process must only import."""

import contextlib
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from seta_runtime import fork_server
from seta_runtime.config import VLLM_VERSION
from tests.server.process import REPO, ServerProcess

CHILD = """
import os

def report(queue):
    import torch
    cpus = sorted(os.sched_getaffinity(0))
    queue.put((os.environ.get("LATE"), os.environ.get("EARLY"), cpus, torch.get_num_threads()))
"""
STUBBORN = """
import os, signal, time

def ignore_everything(queue):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    queue.put(os.getpid())
    time.sleep(600)
"""
KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from seta_runtime import fork_server
from seta_runtime.config import VLLM_VERSION
from child import ignore_everything

if __name__ == "__main__":
    fork_server.PRELOADED = ()
    fork_server.start()
    context = fork_server.ForkServer()
    queue = context.Queue()
    context.Process(target=ignore_everything, args=(queue,)).start()
    print(queue.get(timeout=60), flush=True)
    os.kill(os.getpid(), 9)
"""
PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from seta_runtime import fork_server
from seta_runtime.config import VLLM_VERSION
from child import report

if __name__ == "__main__":
    cpu = min(os.sched_getaffinity(0))
    os.environ["EARLY"] = "1"
    fork_server.PRELOADED = ("torch",)
    fork_server.start()
    assert fork_server.is_in_use()
    del os.environ["EARLY"]
    os.environ.update(LATE="2", OMP_PLACES="{%d}" % cpu, OMP_NUM_THREADS="1")
    context = fork_server.ForkServer()
    queue = context.Queue()
    process = context.Process(target=report, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == ("2", None, [cpu], 1)
    process.join()
    assert process.exitcode == 0
"""


def test_a_process_has_the_environment_of_its_start(tmp_path: Path) -> None:
    """Not the one in which the fork server began, although OpenMP has been loaded there."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(REPO)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    """However the parent ended, and whatever the process does about signals."""
    (tmp_path / "child.py").write_text(STUBBORN)
    (tmp_path / "parent.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "parent.py"), str(REPO)]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(60)


def test_the_engine_comes_from_the_fork_server(server_process: ServerProcess) -> None:
    """And that process has one thread: another one, or an OpenMP team, would be lost in every fork."""
    [source] = [p for p in server_process.root.children() if any("forkserver" in word for word in p.cmdline())]
    assert source.num_threads() == 1
    engine = source.children(recursive=True)
    assert sorted(" ".join(process.cmdline()).split()[0] for process in engine) == ["VLLM::EngineCore", "VLLM::Worker"]


@pytest.mark.parametrize(
    ("preload", "is_installed", "expected"),
    [("", True, True), ("libtcmalloc.so", True, True), ("/usr/lib/libiomp5.so", True, False), ("", False, False)],
)
def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch, preload: str, is_installed: bool, expected: bool) -> None:
    def version(name: str) -> str:
        if not is_installed:
            raise PackageNotFoundError(name)
        return VLLM_VERSION

    monkeypatch.setattr(fork_server, "version", version)
    monkeypatch.setenv("LD_PRELOAD", preload)
    assert fork_server.is_supported() is expected
