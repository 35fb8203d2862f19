"""Each thing that can be wrong before the installation is one sentence that says what to do."""

import ctypes
import platform
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from deploy import preflight
from deploy.preflight import SetupError


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_running_python_is_found():
    assert preflight.find_python() == Path(sys.executable)


def test_another_python_on_path_is_found(tmp_path, monkeypatch):
    wrong = script(tmp_path / "wrong", "echo 3.8 /usr/bin/python3.8")
    script(tmp_path / "python3.12", "echo 3.12 /opt/python3.12")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(wrong))
    assert preflight.find_python() == Path("/opt/python3.12")


def test_no_supported_python(tmp_path, monkeypatch):
    wrong = script(tmp_path / "wrong", "echo 3.10 /usr/bin/python3.10")
    script(tmp_path / "python3.11", "exit 127")  # as a version manager's shim does for a version it does not have
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(wrong))
    with pytest.raises(SetupError, match=r"none of python3\.11, python3\.12, python3\.13 is on PATH; install"):
        preflight.find_python()


def test_no_venv_module(tmp_path):
    body = f'case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac'
    with pytest.raises(SetupError, match=r"no venv module; install it .*apt-get install python3\.\d+-venv"):
        preflight.check_venv_module(script(tmp_path / "python", body))


def test_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda directory: usage(free=2 << 30))
    preflight.check_disk(tmp_path, 2, "it")
    with pytest.raises(SetupError, match=r"2\.0 GiB are free .* it needs 2\.5; make room"):
        preflight.check_disk(tmp_path, 2.5, "it")


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "riscv64")])
def test_platform_without_wheels(monkeypatch, system, machine):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SetupError, match=f"this is {system} on {machine}"):
        preflight.check_platform()


def test_missing_library(monkeypatch):
    def fail(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", fail)
    with pytest.raises(SetupError, match="apt-get install libnuma1"):
        preflight.check_libraries()


def test_port_in_use():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        port = sock.getsockname()[1]
        with pytest.raises(SetupError, match=rf"port {port} .*in use.*make demo PORT={port + 1}"):
            preflight.check_port(port)
    preflight.check_port(port)
