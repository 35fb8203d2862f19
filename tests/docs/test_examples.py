"""What docs/quickstart.md and docs/api.md show, against the app's own routes and the real server."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from starlette.routing import Route

from server.app import build_app
from server.config import build_config
from server.console import PATH as CONSOLE
from server.service import Service
from tests.docs.documents import REPO, block_lines, fences
from tests.server.process import NAME

QUICK_START = REPO / "docs/quickstart.md"
API = (REPO / "docs/api.md").read_text()


def test_the_table_of_routes_is_the_apps(tmp_path: Path) -> None:
    app = build_app(Service(build_config(model="m", bank=tmp_path)))
    routes = {f"{method} {one.path}" for one in app.routes if isinstance(one, Route) for method in one.methods or ()}
    rows = [line.split("|")[1] for line in API.splitlines() if line.startswith("| `")]
    shown = {route for row in rows for route in re.findall(r"`((?:GET|POST) [^`]+)`", row)}
    assert shown == {route for route in routes if not route.startswith(f"GET {CONSOLE}/")}


def test_the_quick_starts_curl(server: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    lines = [line.text for line in block_lines(QUICK_START.name, QUICK_START.read_text())]
    (line,) = [line for line in lines if line.startswith("curl")]
    done = subprocess.run(["sh", "-ec", line.replace("http://127.0.0.1:8000", server)], capture_output=True, text=True)
    assert done.returncode == 0 and '"content":"poultry"' in done.stdout, done.stdout + done.stderr


def test_the_quick_starts_python(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = fences(QUICK_START.name, QUICK_START.read_text(), "python")
    script = tmp_path / "example.py"
    script.write_text(example.text.replace("http://127.0.0.1:8000", server).replace("seta-demo", NAME))
    runpy.run_path(str(script))
    assert capsys.readouterr().out == "HassMediaPlayerMute [{'name': 'smart_home', 'weight': 1.0}]\n"
