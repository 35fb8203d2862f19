"""The commands of docs/evaluation.md, as they stand there but for the port: three tools, one accuracy."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.documents import block_lines
from tests.server.process import REPO, ServerProcess

DOCUMENT = "docs/evaluation.md"
OUT = REPO / "build/evaluation"
TOOLS = REPO / "build/clients/bin"
FLIPS = 1
"""Answers that may differ between two runs in bfloat16: the sums' order follows the batch's composition."""

LINES = [line.text for line in block_lines(DOCUMENT, (REPO / DOCUMENT).read_text())]


def documented(word: str) -> str:
    (line,) = [line for line in LINES if word in line]
    return line


def run(line: str, server: ServerProcess | None = None) -> str:
    """What a documented line prints. Ours is run by this Python, and what it installs by `python3`."""
    if server is not None:
        line = line.replace("http://127.0.0.1:8000", server.url)
    words = shlex.split(line)
    variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
    command = [sys.executable if word == "python" else word for word in words[len(variables) :]]
    environment = os.environ | dict(word.split("=", 1) for word in variables)
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools(demo_tests: list[Path]) -> None:
    """Both tools, installed as documented unless they are there."""
    if not (TOOLS / "inspect").exists() or not (TOOLS / "lm_eval").exists():
        run(documented("-m venv"))
        run(documented("pip install"))


def newest(pattern: str) -> Any:
    return json.loads(max(OUT.glob(pattern), key=lambda path: path.stat().st_mtime_ns).read_text())


@pytest.fixture(scope="module")
def ours(traced: ServerProcess, demo_tests: list[Path]) -> float:
    """Right answers of 50, by the server's own command."""
    found = re.search(r"foods\s*│\s*(\d+)\s*│\s*(\d+)", run(documented("loadtest.accuracy"), traced))
    assert found and found[1] == "50"
    return int(found[2])


def test_lm_eval(tools: None, traced: ServerProcess, ours: float) -> None:
    printed = run(documented("lm_eval run"), traced)
    found = newest("lm_eval/*/results_*.json")
    print(printed, f"seta counts {ours} of 50")
    assert found["n-samples"]["seta_foods"] == {"original": 300, "effective": 50}
    assert 50 * found["results"]["seta_foods"]["exact_match,stripped"] == pytest.approx(ours, abs=FLIPS + 0.01)


def test_inspect(tools: None, traced: ServerProcess, ours: float) -> None:
    printed = run(documented("inspect eval"), traced)
    found = newest("inspect/*.json")
    (score,) = found["results"]["scores"]
    print(printed, f"seta counts {ours} of 50")
    assert found["status"] == "success" and found["results"]["completed_samples"] == 50
    assert 50 * score["metrics"]["accuracy"]["value"] == pytest.approx(ours, abs=FLIPS + 0.01)
