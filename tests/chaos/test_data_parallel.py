"""Two whole engines behind one name: they answer as one does, and an activation reaches both or neither."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from adapters.admin_client import AdminClient, AdminError
from tests.chaos.conftest import HOOKS
from tests.chaos.tiny_server import tiny_server
from tests.server.process import NAME, REPO, ServerProcess
from tests.seta_runtime.random_bank import TASKS, prompts_of

PROMPTS = [text for task in TASKS for text in prompts_of(task, 8, seed=5)]
OPTIONS = ("--no-enable-prefix-caching", "--max-generations", "2", "--kv-cache-gib", "0.2")


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "faults"
    path.mkdir()
    monkeypatch.setenv("SETA_TEST_FAULTS", str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HOOKS), str(REPO)]))
    return path


@pytest.fixture
def one(tmp_path: Path, faults: Path) -> Iterator[ServerProcess]:
    (tmp_path / "one").mkdir()
    with tiny_server(tmp_path / "one", *OPTIONS) as server:
        yield server


@pytest.fixture
def two(tmp_path: Path, faults: Path) -> Iterator[ServerProcess]:
    (tmp_path / "two").mkdir()
    with tiny_server(tmp_path / "two", *OPTIONS, "--data-parallel-size", "2") as server:
        yield server


def answers(server: ServerProcess) -> list[dict[str, Any]]:
    """Each prompt's text, generation and explanation, eight clients at once."""

    def ask(prompt: str) -> dict[str, Any]:
        message = {"role": "user", "content": prompt}
        body = {"model": NAME, "messages": [message], "max_tokens": 6, "temperature": 0, "seta": {"explain": True}}
        found = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
        assert found.status_code == 200, found.text
        told = found.json()
        weights = [round(expert["weight"], 4) for expert in told["seta"]["experts"]]
        return {
            "text": told["choices"][0]["message"]["content"],
            "generation": told["seta"]["generation"],
            "base": round(told["seta"]["base_weight"], 4),
            "experts": weights,
        }

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, PROMPTS))


def metric(server: ServerProcess, name: str) -> dict[str, float]:
    """Every series of a name, by its labels."""
    text = httpx.get(f"{server.admin_url}/metrics", timeout=30).text
    return {labels: float(value) for labels, value in re.findall(rf"^{name}({{.*}})? (\S+)$", text, re.MULTILINE)}


def resident(server: ServerProcess) -> dict[int, int]:
    found = AdminClient(server.admin_url).generations()["generations"]
    return {one["generation"]: one["resident_bytes"] for one in found if one["resident_bytes"] is not None}


def workers(server: ServerProcess) -> list[int]:
    return [each.pid for each in server.root.children(recursive=True) if "Worker" in _title(each)]


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) + process.name()


def test_two_replicas_answer_and_count_as_one(one: ServerProcess, two: ServerProcess) -> None:
    assert answers(two) == answers(one)
    finished = metric(two, "vllm:generation_tokens_total")
    assert len(finished) == 2 and min(finished.values()) > 0, "both replicas had requests"
    for name in ("seta_tokens_total", "seta_routed_tokens_total", "seta_base_tokens_total"):
        assert sum(metric(two, name).values()) == sum(metric(one, name).values()) > 0, name
    by_task = metric(two, "seta_task_requests_total")
    assert by_task == metric(one, "seta_task_requests_total") and sum(by_task.values()) == len(PROMPTS)
    assert len(by_task) > 1 and not any('task="none"' in labels for labels in by_task)


def test_an_activation_reaches_both_or_neither(two: ServerProcess, faults: Path) -> None:
    admin = AdminClient(two.admin_url)
    newest = answers(two)
    before, pids = resident(two), workers(two)
    assert len(pids) == 2
    for pid in pids:
        (faults / "broken").write_text(str(pid))
        with pytest.raises(AdminError):
            admin.activate(1)
        assert (admin.generations()["serving"], resident(two)) == (2, before)
        assert answers(two) == newest
    (faults / "broken").unlink()
    assert admin.activate(1)["serving"] == 1
    older = answers(two)
    assert {answer["generation"] for answer in older} == {1}
    assert admin.activate(2)["serving"] == 2
    assert answers(two) == newest != older
