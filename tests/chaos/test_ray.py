"""The example of deploy/ray under the real Ray: routed answers through Ray's own OpenAI ingress, on a CPU.

Ray is installed as docs/deployment.md says, into build/, beside what runs this.
"""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.documents import block_lines
from tests.server.process import REPO, free_port

FOLDER = REPO / "deploy/ray"
PLACE = REPO / "build/ray"
DOCUMENT = REPO / "docs/deployment.md"
FOOD = "Which food group does this description belong to?\nChicken breast tenders, breaded, uncooked"
TALK = "What is the capital of France?"
SECONDS = 1800


@pytest.fixture(scope="module")
def python() -> Path:
    """One that has Ray and all that this one has; a second run finds it."""
    lines = [line.text for line in block_lines(DOCUMENT.name, DOCUMENT.read_text())]
    (documented,) = [line for line in lines if line.startswith("pip install 'ray[")]
    packages = shlex.split(documented, comments=True)[2:]
    stamp, python = PLACE / "stamp", PLACE / "bin/python"
    if not stamp.exists() or stamp.read_text() != repr(packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PLACE)], check=True)
        here = sysconfig.get_path("purelib")
        there = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        (Path(there) / "beside.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        stamp.write_text(repr(packages))
    return python


@pytest.fixture(scope="module")
def answers(python: Path, model_dir: Path, demo_bank: Path) -> Any:
    (application,) = yaml.safe_load((FOLDER / "serve.yaml").read_text())["applications"]
    settings = application["args"] | {"model": str(model_dir), "bank": str(demo_bank)}
    usual = {"model": settings["name"], "temperature": 0, "max_tokens": 8}
    chats = [usual | {"messages": [{"role": "user", "content": text}]} for text in (FOOD, TALK)]
    path = os.pathsep.join([str(REPO), str(FOLDER)])
    job = {"settings": settings, "port": free_port(), "path": path, "chats": chats}
    job["completions"] = [usual | {"prompt": f"<|im_start|>user\n{FOOD}<|im_end|>\n<|im_start|>assistant\n"}]
    environment = {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_worker_niceness"] = "0"  # Ray's own is 15
    done = subprocess.run(
        [str(python), "-m", "tests.chaos.ray_driver"],
        cwd=REPO,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ray_lists_the_model(answers: Any) -> None:
    assert [model["id"] for model in answers["models"]["data"]] == ["seta"]


def test_a_chat_is_routed_and_says_by_which_generation(answers: Any) -> None:
    food, talk = answers["chats"]
    assert (food["model"], food["choices"][0]["message"]["content"]) == ("seta@4", "poultry")
    assert talk["choices"][0]["message"]["content"] not in ("", "poultry")


def test_a_stream_says_the_same(answers: Any) -> None:
    for whole, stream in zip(answers["chats"], answers["streams"], strict=True):
        *lines, last = [line.removeprefix("data: ") for line in stream.splitlines() if line]
        assert last == "[DONE]"
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]


def test_a_completion_is_routed(answers: Any) -> None:
    (answer,) = answers["completions"]
    assert (answer["model"], answer["choices"][0]["text"]) == ("seta@4", "poultry")
