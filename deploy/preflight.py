"""What can be said before anything is installed: the platform, a usable Python, disk space, the port."""

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GIB = 1 << 30
PROBE = "import sys; print('%d.%d %s' % (*sys.version_info[:2], sys.executable))"


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence that says what to do."""


def check_platform() -> None:
    """Raises: SetupError where the CPU engine has no wheels."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in MACHINES:
        raise SetupError(f"this is {system} on {machine}; the engine's wheels are for Linux on {' or '.join(MACHINES)}")


def check_libraries() -> None:
    """Raises: SetupError. The engine's CPU kernels link to libnuma, which a small system does not have."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise SetupError("libnuma.so.1 is missing; install it (Debian/Ubuntu: apt-get install libnuma1)") from None


def find_python() -> Path:
    """The running interpreter if it will do, else the first on PATH that does. Raises: SetupError."""
    for candidate in (sys.executable, *("python" + version for version in PYTHONS)):
        found = probe(candidate)
        if found is not None:
            return found
    running = ".".join(map(str, sys.version_info[:2]))
    raise SetupError(
        f"python3 is Python {running}, and none of python{', python'.join(PYTHONS)} is on PATH; install one of them "
        "with its venv module (on Debian 12: apt-get install python3.11 python3.11-venv) and start again"
    )


def probe(python: str) -> "Path | None":
    """The real path of a supported interpreter, or None: not there, does not run, wrong version."""
    if not shutil.which(python):
        return None
    run = subprocess.run([python, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    version, _, executable = run.stdout.decode().strip().partition(" ")
    return Path(executable) if run.returncode == 0 and version in PYTHONS else None


def check_venv_module(python: Path) -> None:
    """Raises: SetupError. Debian and Ubuntu ship Python without it."""
    run = subprocess.run([str(python), "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL, check=False)
    if run.returncode != 0:
        name = "python" + run_version(python)
        raise SetupError(
            f"{python} has no venv module; install it (Debian/Ubuntu: apt-get install {name}-venv) and start again"
        )


def run_version(python: Path) -> str:
    """Such as "3.11"."""
    return subprocess.run([str(python), "-c", PROBE], stdout=subprocess.PIPE, check=True).stdout.decode().split()[0]


def check_disk(directory: Path, needed_gib: float, purpose: str) -> None:
    """Raises: SetupError."""
    free_gib = shutil.disk_usage(directory).free / GIB
    if free_gib < needed_gib:
        raise SetupError(
            f"{free_gib:.1f} GiB are free in {directory}, {purpose} needs {needed_gib:g}; make room and start again"
        )


def check_writable(directory: Path) -> None:
    """Raises: SetupError."""
    if not os.access(directory, os.W_OK):
        raise SetupError(f"{directory} cannot be written to; clone the repository where you may write")


def check_port(port: int) -> None:
    """Raises: SetupError."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen(1)
        except OSError as error:
            raise SetupError(
                f"port {port} cannot be used ({error.strerror}); stop what uses it, or: make demo PORT={port + 1}"
            ) from None
