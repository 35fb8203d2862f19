"""The command as a person meets it: help, and the one sentence it says when it cannot start."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.bank import Bank
from server.config import ServeConfig
from server.keys import digest, line_for, parse_keys, read_file
from tests.server.process import REPO, free_port, serve_command


def run(*arguments: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "server.cli", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout)


def one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("seta: "), done.stderr
    return lines[0].removeprefix("seta: ")


def test_help_imports_neither_torch_nor_vllm() -> None:
    script = "import sys; from server.cli import app; app(['--help'], standalone_mode=False); " + (
        "print(sorted({'torch', 'vllm', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("serve", "learn", "evaluate", "bank", "keys", "loadtest"):
        assert command in done.stdout


def test_every_setting_is_an_option_with_a_help_text() -> None:
    shown = run("serve", "--help").stdout
    for name, field in ServeConfig.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert field.description


def test_bank_is_handed_on_to_the_banks_own_commands() -> None:
    shown = run("bank", "--help")
    assert shown.returncode == 0
    assert "verify" in shown.stdout


class TestKeys:
    def test_a_new_key_is_shown_with_the_line_that_lets_it_in(self) -> None:
        done = run("keys", "new", "alice")
        key, line = (shown.partition(": ")[2].strip() for shown in done.stdout.splitlines())
        assert line == line_for("alice", key)

    def test_a_new_key_is_added_to_a_file_of_its_owners_own(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        keys = []
        for name in ("alice", "bob"):
            keys.append(run("keys", "new", name, "--file", str(file)).stdout.splitlines()[0].partition(": ")[2].strip())
            file.write_text(file.read_text().rstrip("\n"))  # as some editors leave it
        assert parse_keys(read_file(file)) == {digest(keys[0]): "alice", digest(keys[1]): "bob"}
        assert file.stat().st_mode & 0o777 == 0o600
        assert not any(key in file.read_text() for key in keys)

    def test_a_bad_name_is_one_sentence(self) -> None:
        assert one_sentence(run("keys", "new", "a b")).startswith("'a b' cannot be a key's name")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "a@b"], "--name: 'a@b' cannot be a model name"),
        (["--bank", "no/such/bank"], "--bank: there is no directory 'no/such/bank'"),
        (["--pipeline-parallel-size", "2"], "--pipeline-parallel-size: pipeline parallelism is not supported"),
        (["--model", "./no/model"], "--model ./no/model: there is no directory"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others could reach it and there is no key"),
        (["--host", "203.0.113.7", "--api-keys-file", "KEYS"], "cannot listen on 203.0.113.7:"),
        (["--api-keys-file", "no/such/file"], "--api-keys-file no/such/file: it cannot be read (No such file"),
    ],
)
def test_a_bad_option_is_one_sentence(demo_bank: Path, tmp_path: Path, options: list[str], says: str) -> None:
    usual = ["--model", "./no/model", "--bank", str(demo_bank), "--port", str(free_port()), "--admin-port", "0"]
    (tmp_path / "keys").write_text(line_for("alice", "a-key"))
    options = [str(tmp_path / "keys") if option == "KEYS" else option for option in options]
    assert one_sentence(run("serve", *usual, *options)).startswith(says)


def test_a_port_in_use_is_said_at_once(demo_bank: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--model", "./no/model", "--bank", str(demo_bank), "--port", str(port))
    says = one_sentence(done)
    assert says.startswith(f"cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert "--port" in says


def test_a_directory_that_is_no_bank(model_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        serve_command(model_dir, tmp_path, free_port()), cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert "is not a bank" in one_sentence(done)


def test_a_bank_for_another_base_model(demo_bank: Path, model_dir: Path, tmp_path: Path) -> None:
    """The same model with one weight changed is another model."""
    other = tmp_path / "other"
    other.mkdir()
    for file in model_dir.iterdir():
        (other / file.name).symlink_to(file.resolve())
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x40
    weights.unlink()
    weights.write_bytes(content)
    done = subprocess.run(
        serve_command(other, demo_bank, free_port()), cwd=REPO, capture_output=True, text=True, timeout=120
    )
    says = one_sentence(done)
    assert "was trained on base" in says and "retrain, or start with the model" in says


def truncate_an_object(bank: Path) -> None:
    path = next((bank / "objects/sha256").iterdir())
    path.write_bytes(path.read_bytes()[:-1])


def remove_an_object(bank: Path) -> None:
    next((bank / "objects/sha256").iterdir()).unlink()


def damage_an_object(bank: Path) -> None:
    path = next((bank / "objects/sha256").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def write_a_newer_format(bank: Path) -> None:
    path = bank / "generations" / f"{Bank.open(bank).current():05d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))


def lead_out_of_the_bank(bank: Path) -> None:
    objects = bank / "objects/sha256"
    objects.rename(bank.parent / "elsewhere")
    objects.symlink_to(bank.parent / "elsewhere")


def serve_no_generation(bank: Path) -> None:
    (bank / "CURRENT").unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (truncate_an_object, "bytes"),
        (remove_an_object, "does not exist"),
        (damage_an_object, "sha256|digest"),
        (write_a_newer_format, "has format_version 9, this software reads up to 3"),
        (lead_out_of_the_bank, "link"),
        (serve_no_generation, "CURRENT does not exist"),
    ],
)
def test_a_bank_that_is_not_whole(
    demo_bank: Path, model_dir: Path, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    bank = tmp_path / "bank"
    only_the_current(demo_bank, bank)
    harm(bank)
    done = subprocess.run(
        serve_command(model_dir, bank, free_port()), cwd=REPO, capture_output=True, text=True, timeout=120
    )
    sentence = one_sentence(done)
    assert sentence.startswith("--bank bank: ") and re.search(says, sentence)
    assert str(tmp_path) not in sentence


def only_the_current(source: Path, bank: Path) -> None:
    """A copy that holds no object that its current generation does not need."""
    shutil.copytree(source, bank)
    needed = {ref.object for ref in Bank.open(bank).manifest().refs}
    for path in (bank / "objects/sha256").iterdir():
        if path.stem not in needed:
            path.unlink()


def test_log_level_debug_shows_the_traceback(demo_bank: Path) -> None:
    port = str(free_port())
    done = run("serve", "--model", "./none", "--bank", str(demo_bank), "--port", port, "--log-level", "debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
