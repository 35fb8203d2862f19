"""The steps of a set-up with pip replaced by a recorder: once, resumable, one sentence on failure."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from deploy import bootstrap
from deploy.installer import PipFailed
from deploy.preflight import SetupError

LOCK = "# a comment\npip==26.3\nsix==1.17.0\ntorch==2.13.0+cpu\n"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository of which only the lock and pyproject.toml matter."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "cpu.lock").write_text(LOCK)
    venv = tmp_path / ".venv"
    places = {"ROOT": tmp_path, "VENV": venv, "PYTHON": venv / "bin" / "python", "STAMP": venv / "seta.stamp"}
    places |= {"LOCK": tmp_path / "cpu.lock", "LOG": tmp_path / "build" / "bootstrap.log"}
    for name, path in places.items():
        monkeypatch.setattr(bootstrap, name, path)
    monkeypatch.setattr(bootstrap.preflight, "check_disk", lambda *needed: None)
    monkeypatch.setattr(bootstrap, "create_venv", stand_in_for_a_venv)
    return tmp_path


def stand_in_for_a_venv(python: Path) -> None:
    """What `python -m venv --clear` leaves, as far as these tests look at it."""
    shutil.rmtree(bootstrap.VENV, ignore_errors=True)
    (bootstrap.VENV / "bin").mkdir(parents=True)
    (bootstrap.VENV / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    bootstrap.PYTHON.symlink_to(python)
    (bootstrap.VENV / "bin" / "pip").touch()


class Pip:
    """Records what pip is asked; `fails` maps a word of the command to the output it fails with."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: dict[str, str] = {}

    def __call__(self, python: Path, arguments, log: Path, tick) -> None:
        command = " ".join(map(str, arguments))
        self.asked.append(command)
        for word, output in self.fails.items():
            if word in command:
                raise PipFailed("pip failed", output)


@pytest.fixture
def pip(monkeypatch) -> Pip:
    recorder = Pip()
    monkeypatch.setattr(bootstrap, "pip", recorder)
    return recorder


def test_a_real_venv(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "venv")
    bootstrap.create_venv(Path(sys.executable))
    assert (tmp_path / "venv" / "bin" / "pip").exists()
    assert bootstrap.site_packages(tmp_path / "venv" / "bin" / "python").is_dir()


def test_a_venv_that_cannot_be_made(tree, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(bootstrap, "VENV", tree / "cpu.lock" / "venv")
    with pytest.raises(SetupError, match="could not make"):
        bootstrap.create_venv(Path(sys.executable))


def test_installs_once(tree, pip):
    python = bootstrap.ensure()
    assert python.exists() and bootstrap.is_current()
    what = [re.sub(r".*--disable-pip-version-check ", "", command) for command in pip.asked]
    editable = f"--no-build-isolation --editable {tree}"
    assert what == ["pip==26.3", "torch==2.13.0+cpu", f"-r {tree / 'cpu.lock'}", editable]
    assert all("--no-deps" in command for command in pip.asked)
    bootstrap.ensure()
    assert len(pip.asked) == 4


@pytest.mark.parametrize("changed", ["cpu.lock", "pyproject.toml"])
def test_a_change_installs_again_into_the_same_venv(tree, pip, changed):
    bootstrap.ensure()
    (bootstrap.VENV / "keep").touch()
    with (tree / changed).open("a") as file:
        file.write("# changed\n")
    bootstrap.ensure()
    assert len(pip.asked) == 8
    assert (bootstrap.VENV / "keep").exists()


def test_an_interrupted_run_goes_on(tree, pip):
    pip.fails = {"-r ": ""}
    with pytest.raises(SetupError):
        bootstrap.ensure()
    assert not bootstrap.is_current()
    site = bootstrap.site_packages(bootstrap.PYTHON)
    (site / "half-1.0.dist-info").mkdir()
    (site / "whole-1.0.dist-info").mkdir()
    (site / "whole-1.0.dist-info" / "INSTALLER").touch()
    pip.fails = {}
    bootstrap.ensure()
    assert bootstrap.is_current()
    assert not (site / "half-1.0.dist-info").exists()
    assert (site / "whole-1.0.dist-info").exists()


def test_a_venv_whose_python_is_gone_is_made_anew(tree, pip):
    bootstrap.ensure()
    bootstrap.PYTHON.unlink()
    bootstrap.PYTHON.symlink_to("/nowhere/python3")
    bootstrap.ensure()
    assert bootstrap.is_current() and bootstrap.PYTHON.exists()


def test_torch_from_its_own_index_only_where_pip_finds_none(tree, pip):
    pip.fails = {"check torch==": "ERROR: No matching distribution found for torch==2.13.0+cpu"}
    bootstrap.ensure()
    assert [bootstrap.TORCH_INDEX in command for command in pip.asked] == [False, False, True, False, False]
    assert "torch==2.13.0+cpu" in pip.asked[2]


def test_without_network_the_other_index_is_not_tried(tree, pip):
    pip.fails = {"torch==": "NewConnectionError\nERROR: No matching distribution found for torch==2.13.0+cpu"}
    with pytest.raises(PipFailed):
        bootstrap.ensure()
    assert not any(bootstrap.TORCH_INDEX in command for command in pip.asked)


def test_torch_nowhere_to_be_had(tree, pip):
    pip.fails = {"torch==": "ERROR: No matching distribution found for torch==2.13.0+cpu"}
    with pytest.raises(SetupError, match="neither where pip looks nor.*PIP_FIND_LINKS"):
        bootstrap.ensure()


def test_a_lock_without_a_pin(tree, pip):
    (tree / "cpu.lock").write_text("pip==26.3\n")
    with pytest.raises(SetupError, match="does not pin torch"):
        bootstrap.ensure()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SetupError("do this"), 1, "error: do this"),
        (OSError(28, "No space left on device", "/x"), 1, "error: No space left on device: /x"),
        (KeyboardInterrupt(), 130, "start again to go on"),
    ],
)
def test_how_a_run_ends(monkeypatch, capsys, error, code, said):
    def work() -> int:
        raise error

    monkeypatch.setattr(bootstrap, "raise_on_signals", lambda: None)
    assert bootstrap.run(work) == code
    assert said in capsys.readouterr().err
