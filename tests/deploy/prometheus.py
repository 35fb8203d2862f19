"""Prometheus and promtool for tests: those on PATH, or Debian's package unpacked into build/, without installing it.

apt gets folders of its own, so this needs no root and leaves the machine's package lists as they are.
"""

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
_PLACE = REPO / "build" / "prometheus"


def promtool() -> str:
    return _find("promtool")


def prometheus() -> str:
    return _find("prometheus")


@functools.cache
def _find(name: str) -> str:
    if (found := shutil.which(name)) is not None:
        return found
    unpacked = _PLACE / "usr" / "bin" / name
    if not unpacked.exists():
        _fetch()
    return str(unpacked)


def _fetch() -> None:
    """Fails, and says how to help, where there is no apt or no mirror."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.fail("there is no promtool on PATH and no apt to fetch it with; install Prometheus")
    _PLACE.mkdir(parents=True, exist_ok=True)
    with (_PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (_PLACE / "usr" / "bin" / "promtool").exists():
            return
        try:
            _download_and_unpack()
        except subprocess.CalledProcessError as error:
            pytest.fail(f"there is no promtool on PATH, and Debian's package cannot be fetched: {error.stderr[-500:]}")


def _download_and_unpack() -> None:
    apt = _PLACE / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    options = [f"-oDir::State::Lists={apt / 'lists'}", f"-oDir::Cache={apt / 'cache'}"]
    if os.geteuid() == 0:
        options.append("-oAPT::Sandbox::User=root")
    _run("apt-get", *options, "-q", "update")
    _run("apt-get", *options, "-q", "download", "prometheus", cwd=apt)
    (package,) = apt.glob("prometheus_*.deb")
    unpacked = _PLACE / "unpacked"
    _run("dpkg-deb", "-x", str(package), str(unpacked))
    (unpacked / "usr").rename(_PLACE / "usr")  # at once, so that nobody finds half of it
    shutil.rmtree(unpacked)
    shutil.rmtree(apt)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=300)
