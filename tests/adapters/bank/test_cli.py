"""`python -m adapters.bank`: people read it, so what counts is what it prints and how it exits."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.bank import Bank
from adapters.bank.cli import app

from .factory import make_bank


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    bank = make_bank(tmp_path)
    shown = run("show", tmp_path)
    assert shown.exit_code == 0
    assert "generation 2 (CURRENT; 3 in the bank), parent 1" in shown.stdout
    assert bank.manifest().experts[1].object[:12] in shown.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.splitlines()]
    assert ["beta.unique", "unique", "2", "3", "0.7 KiB", f"{bank.manifest().experts[1].object[:12]}…"] in rows
    assert ["beta", "90.0", "89.0"] in rows
    assert "CURRENT is 2" in run("show", tmp_path, "--generation", 0).stdout


def test_verify(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    assert run("verify", tmp_path).stdout == "ok: 3 generation(s)\n"
    (tmp_path / f"objects/sha256/{bank.manifest().gate.object}.safetensors").unlink()
    failed = run("verify", tmp_path)
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("generation 2: BankNotFound: objects/sha256/")


def test_use_gc_export_import(tmp_path: Path) -> None:
    bank, archive = make_bank(tmp_path / "bank"), tmp_path / "archive.tar"
    assert run("use", bank.root, 1).stdout == "CURRENT is 1\n"
    assert bank.current() == 1
    assert "exported generation 2" in run("export", bank.root, archive, "-g", 2).stdout
    assert run("import", tmp_path / "new", archive).stdout == "imported generation 2; CURRENT is 2\n"
    assert Bank.open(tmp_path / "new").verify() == []
    assert "generations [0] with them" in run("gc", bank.root, "--keep", 1, "--keep", 2, "--grace-seconds", 0).stdout
    assert bank.generations() == [1, 2]


@pytest.mark.parametrize("command", [["show"], ["verify"], ["gc"], ["use", "3"], ["export", "a.tar"]])
def test_errors_are_one_line_without_a_traceback(tmp_path: Path, command: list[str]) -> None:
    failed = run(command[0], tmp_path / "nowhere", *command[1:])
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert failed.stderr == "BankNotFound: 'nowhere' is not a bank, it has no objects/; check the path\n"


def test_as_a_module(tmp_path: Path) -> None:
    make_bank(tmp_path, [])
    command = [sys.executable, "-m", "adapters.bank", "use", str(tmp_path), "7"]
    failed = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("BankNotFound: generations/00007.json does not exist;")
    assert failed.stderr.count("\n") == 1
