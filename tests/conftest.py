"""Fixtures shared by all tests: the real small model, the shipped bank, and a real server over both.

SETA_MODEL   another copy of the model     SETA_BANK   another bank (both optional, for work on the bank itself)
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server.process import REPO, ServerProcess, start_server, stop_server, wait_until_ready


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """SmolLM2-135M-Instruct as a local model; made from its package if it is not there yet."""
    path = Path(os.environ.get("SETA_MODEL", REPO / "build/models/SmolLM2-135M-Instruct"))
    if not (path / "config.json").is_file():
        subprocess.run([sys.executable, "-m", "adapters.demo.model", "--out", str(path)], cwd=REPO, check=True)
    return path


@pytest.fixture(scope="session")
def demo_bank() -> Path:
    """The bank of the four demo tasks that is part of the repository."""
    path = Path(os.environ.get("SETA_BANK", REPO / "demo/bank"))
    if not path.is_dir():
        pytest.fail(f"{path} is missing; make demo-bank builds it")
    return path


@pytest.fixture(scope="session")
def live_bank(demo_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The running server's own copy of the demo bank: orders to the server write into it."""
    return shutil.copytree(demo_bank, tmp_path_factory.mktemp("live") / "bank")


@pytest.fixture(scope="session")
def server_process(
    model_dir: Path, live_bank: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that is ready; afterwards it must end by itself and leave no process behind."""
    log = tmp_path_factory.mktemp("server") / "log"
    running = start_server(model_dir, live_bank, log)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop_server(running)


@pytest.fixture(scope="session")
def server(server_process: ServerProcess) -> str:
    """The base URL of the running server."""
    return server_process.url


@pytest.fixture(scope="session")
def client(server: str) -> openai.OpenAI:
    """OpenAI's own client, which must not notice a difference."""
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="session")
def demo_tests(model_dir: Path) -> list[Path]:
    """Held-out examples of the four demo tasks; built from their packages if they are not there yet."""
    folder = REPO / "build/demo/tasks"
    paths = [folder / task / "test.jsonl" for task in ("smart_home", "licences", "icd10", "foods")]
    if not all(path.is_file() for path in paths):
        subprocess.run([sys.executable, "-m", "adapters.demo.build", "--out", str(folder)], cwd=REPO, check=True)
    return paths
