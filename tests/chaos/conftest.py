"""Fixtures of the slow fault tests (`make test-chaos`): a real server, a bank of its own, and faults to switch on."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from adapters.admin_client import AdminClient
from adapters.bank import Bank
from adapters.data import Example, read_examples, read_prompts
from tests.server.process import REPO, ServerProcess, start_server, wait_until_ready

HOOKS = Path(__file__).parent / "hooks"
CURRENT = 4
"""The demo bank's generation in service; it has 0 to 4."""


@dataclass(frozen=True)
class Live:
    """A ready server, its bank, and a directory whose files are the faults in force (`hooks/sitecustomize.py`)."""

    process: ServerProcess
    bank: Bank
    faults: Path

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def admin(self) -> AdminClient:
        return AdminClient(self.process.admin_url)

    @property
    def serving(self) -> int:
        return int(self.admin.generations()["serving"])

    @property
    def resident(self) -> set[int]:
        found = self.admin.generations()["generations"]
        return {one["generation"] for one in found if one["resident_bytes"] is not None}

    def ask(self, text: str = "What is the capital of France?", **fields: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0} | fields
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=300)


Start = Callable[..., Live]


@pytest.fixture
def start(model_dir: Path, demo_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start servers; whatever the test does to them, no process survives it."""
    started: list[ServerProcess] = []
    faults = tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv("SETA_TEST_FAULTS", str(faults))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HOOKS), str(REPO)]))

    def start(*options: str, bank: Path | None = None) -> Live:
        root = bank or shutil.copytree(demo_bank, tmp_path / f"bank{len(started)}")
        log = tmp_path / f"log{len(started)}"
        started.append(start_server(model_dir, root, log, "--log-level", "info", *options))
        wait_until_ready(started[-1])
        return Live(started[-1], Bank.open(root), faults)

    yield start
    for server in started:
        if server.process.poll() is None:
            for process in [*server.root.children(recursive=True), server.root]:
                process.kill()
            server.process.wait()


@pytest.fixture
def live(start: Start) -> Live:
    return start()


@pytest.fixture(scope="session")
def examples(demo_tests: list[Path]) -> dict[str, list[Example]]:
    """Held-out examples of the demo tasks."""
    return {path.parent.name: read_examples(path) for path in demo_tests}


@pytest.fixture(scope="session")
def prompts(examples: dict[str, list[Example]]) -> list[str]:
    """Four prompts of each demo task and of none."""
    rng = random.Random(0)
    of_tasks = [str(example.prompt) for held_out in examples.values() for example in rng.sample(held_out, 4)]
    return of_tasks + rng.sample(read_prompts(REPO / "tests/data/general_prompts.jsonl"), 4)
