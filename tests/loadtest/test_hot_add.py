"""Changes of the served generation under load, and what is left behind."""

import asyncio
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loadtest.admin import PREFIX, Admin, Refused
from loadtest.errors import LoadTestError
from loadtest.progress import Watch
from loadtest.report.schema import Report, read_report
from loadtest.run import LoadTest
from loadtest.settings import Settings
from server import admin as server_admin
from server.admin_models import ActivateOrder, Changed, GenerationList, RollbackOrder
from tests.loadtest.scripted import ADMIN_KEY, SERVING, Script, log_of, scripted_server
from tests.server.process import REPO, free_port


@pytest.fixture
def url() -> Iterator[str]:
    """A server of one's own: these tests change what it serves."""
    with scripted_server() as started:
        yield started


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "w"
    path.write_text(json.dumps({"task": "t", "prompt": Script(delays=(0.02, 0.02), generation=SERVING).prompt}))
    return path


def run(url: str, rows: Path, *, key: str | None = ADMIN_KEY, **options: Any) -> Report:
    usual: dict[str, Any] = {"admin_url": url, "generations": "4,5", "activations": 4, "seconds": 1.0, "rate": "40"}
    settings = Settings(scenario="hot-add", url=url, workload=(rows,), **(usual | options))
    return asyncio.run(LoadTest(settings, Watch(), None, key).run())


def serving(url: str) -> int:
    async def ask() -> int:
        async with aiohttp.ClientSession() as session:
            return (await Admin(session, url, ADMIN_KEY).generations())[0]

    return asyncio.run(ask())


def test_each_change_is_made_marked_and_answered(url: str, rows: Path) -> None:
    report = run(url, rows)
    quiet, hot = report.stages
    assert [(one.kind, one.generation, one.error) for one in report.actions] == [
        ("activate", 4, None),
        ("rollback", 3, None),
        ("activate", 5, None),
        ("rollback", 3, None),
    ]
    assert all(one.at_seconds >= hot.start_seconds for one in report.actions)
    assert all(one.at_seconds < two.at_seconds for one, two in itertools.pairwise(report.actions))
    assert set(quiet.generations) == {"3"} and set(hot.generations) == {"3", "4", "5"}
    assert quiet.total.failed == hot.total.failed == 0
    assert serving(url) == 3


def test_what_served_before_serves_again(url: str, rows: Path) -> None:
    report = run(url, rows, activations=1)
    assert [(one.kind, one.generation) for one in report.actions] == [("activate", 4), ("activate", 3)]
    assert serving(url) == 3


def test_what_the_server_refuses_is_in_the_report(url: str, rows: Path) -> None:
    report = run(url, rows, generations="9", activations=2)
    first, second = report.actions[:2]
    assert (first.kind, first.generation, first.error) == ("activate", 9, "http 422: generation 9 is not whole")
    assert (second.kind, second.generation, second.error) == ("rollback", 3, "generation 2 serves now, not 3")
    assert serving(url) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"generations": "4,7"}, "--generations: the server has 2, 3, 4, 5, 9, not 7"),
        ({"generations": "3"}, "--generations: 3 serves already"),
        ({"key": "wrong-k3y"}, "--admin-url: .*/admin/v1/generations: http 401: wrong key"),
    ],
)
def test_what_cannot_work_is_said_before_the_load(url: str, rows: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(LoadTestError, match=says) as error:
        run(url, rows, **options)
    assert "wrong-k3y" not in str(error.value)
    assert serving(url) == 3


def test_no_admin_listener(url: str, rows: Path) -> None:
    with pytest.raises(LoadTestError, match="--admin-url: .*Cannot connect"):
        run(url, rows, admin_url=f"http://127.0.0.1:{free_port()}")


def test_a_server_that_ends_meanwhile_is_noted() -> None:
    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            await Admin(session, f"http://127.0.0.1:{free_port()}", None).activate(4, 3)

    with pytest.raises(Refused, match="Cannot connect"):
        asyncio.run(ask())


def test_ctrl_c_restores_what_served(url: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETA_ADMIN_KEY", ADMIN_KEY)
    options = ["--scenario", "hot-add", "--url", url, "--admin-url", url, "--generations", "4", "--workload", str(rows)]
    load = ["--requests", "600", "--rate", "200", "--seconds", "30", "--activations", "100"]
    running = subprocess.Popen(
        [sys.executable, "-m", "loadtest", *options, *load, "--out", str(tmp_path / "out")],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while serving(url) != 4:
        assert running.poll() is None, running.communicate()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert read_report(tmp_path / "out").interrupted
    assert serving(url) == 3
    assert ADMIN_KEY.encode() not in out + err + b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
    assert log_of(url)


def test_it_speaks_as_the_admin_api_listens() -> None:
    """The same paths, methods and fields as in the server's own code."""
    routes = {
        (method, getattr(route, "path", ""))
        for route in server_admin.router.routes
        for method in getattr(route, "methods", ())
    }
    assert PREFIX == server_admin.PREFIX
    assert {("GET", f"{PREFIX}/generations"), ("POST", f"{PREFIX}/activate"), ("POST", f"{PREFIX}/rollback")} <= routes
    assert ActivateOrder.model_validate({"generation": 4, "expected_generation": 3}).generation == 4
    assert RollbackOrder.model_validate({"expected_generation": 3}).expected_generation == 3
    assert "serving" in Changed.model_fields and "serving" in GenerationList.model_fields
