"""The command as a person and a CI job meet it."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from loadtest.cli import app
from loadtest.keys import CLIENT_VARIABLES, read_key
from loadtest.options import settings_from
from loadtest.report.files import write_reports
from loadtest.report.schema import read_report
from loadtest.settings import Settings
from tests.loadtest.reports import make_report, make_stage
from tests.loadtest.scripted import Script, log_of
from tests.server.process import REPO

KEY = "s3cret-k3y"
DOCUMENTS = ("README.md", "docs/loadtest.md")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLIENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "server.cli", "loadtest", *map(str, arguments)]


def run(*arguments: str | Path) -> Result:
    """In this process: starting another one takes longer than most of the tests."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workload(path: Path, *scripts: Script) -> Path:
    path.write_text("".join(json.dumps({"task": "t", "prompt": script.prompt}) + "\n" for script in scripts))
    return path


def test_every_setting_is_an_option_with_a_help_text() -> None:
    done = subprocess.run(command("--help"), cwd=REPO, capture_output=True, text=True, check=True)
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in done.stdout
        assert field.description
    assert "File with the API key; else SETA_API_KEY or OPENAI_API_KEY is read." in " ".join(done.stdout.split())
    assert "Usage: seta loadtest [OPTIONS]" in done.stdout and "compare" in done.stdout


def test_a_run_leaves_three_files_and_a_table(scripted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLIENT_VARIABLES[0], KEY)
    rows = workload(tmp_path / "w", Script(key=KEY))
    done = run(
        *("--scenario", "steady", "--url", scripted, "--workload", rows, "--workload", rows, "--concurrency", "2"),
        *("--requests", "8", "--max-tokens", "4:8", "--extra-body", '{"top_p": 0.5}', "--out", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.stderr
    assert "| steady | 2 clients | 8 | 0 |" in done.stdout
    assert "steady: 8 done, 0 failed" in done.stderr
    report = read_report(tmp_path / "out")
    assert report.settings["max_tokens"] == [4, 8]
    assert report.settings["extra_body"] == {"top_p": 0.5}
    assert len(report.settings["workload"]) == 2
    written = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert KEY not in written + done.stdout + done.stderr


def test_the_key_may_be_in_a_file(scripted: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    rows = workload(tmp_path / "w", Script(key=KEY))
    usual = (
        "--scenario",
        "steady",
        "--url",
        scripted,
        "--workload",
        rows,
        "--requests",
        "1",
        "--out",
        tmp_path / "out",
    )
    assert run(*usual, "--api-key-file", tmp_path / "key").exit_code == 0
    refused = run(*usual)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("seta: ") and "http 401" in refused.stderr


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key(None, CLIENT_VARIABLES) is None
    monkeypatch.setenv(CLIENT_VARIABLES[1], " second ")
    assert read_key(None, CLIENT_VARIABLES) == "second"
    monkeypatch.setenv(CLIENT_VARIABLES[0], "first")
    assert read_key(None, CLIENT_VARIABLES) == "first"
    (tmp_path / "key").write_text("third\nmore")
    assert read_key(tmp_path / "key", CLIENT_VARIABLES) == "third"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scenario", "steady", "--arrivals", "poisson"], "--arrivals poisson needs a --rate"),
        (["--scenario", "steady", "--arrivals", "closed", "--rate", "3"], "a closed loop sends when"),
        (["--scenario", "steady", "--rate", "1,2"], "only a sweep takes several"),
        (["--scenario", "steady", "--rate", "x"], "--rate: "),
        (["--scenario", "steady", "--popularity", "one"], "--popularity one and --task NAME go together"),
        (["--scenario", "steady", "--max-tokens", "9:3"], "--max-tokens: 9:3 is empty"),
        (["--scenario", "steady", "--url", "localhost:8000"], "--url: 'localhost:8000' is no address"),
        (["--scenario", "steady", "--url", "http://me:pw@h"], "--url: a key does not belong in an address"),
        (["--scenario", "steady", "--extra-body", "{"], "--extra-body: not JSON"),
        (["--scenario", "steady", "--workload", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--scenario", "steady", "--api-key-file", "none.key"], "none.key: the key cannot be read"),
        (["compare", "none", "none"], "none: cannot be read"),
    ],
)
def test_a_bad_option_is_one_sentence(options: list[str], says: str) -> None:
    done = run(*options)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"seta: {says}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reports_what_was_measured(scripted: str, tmp_path: Path, how: signal.Signals) -> None:
    rows = workload(tmp_path / "w", Script(delays=(0.01, 0.01)), Script(delays=(0.0, 3600.0)))
    options = ("--scenario", "steady", "--url", scripted, "--workload", rows, "--rate", "50", "--seconds", "600")
    answered = len(log_of(scripted))
    running = subprocess.Popen(
        command(*options, "--out", tmp_path / "out"),
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(log_of(scripted)) > answered + 3)
    running.send_signal(how)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "**Interrupted**" in out and "Traceback" not in err
    report = read_report(tmp_path / "out")
    total = report.stages[0].total
    assert report.interrupted
    assert total.completed > 0 and total.unfinished > 0
    assert total.sent == total.completed + total.unfinished


def test_compare_prints_ratios_and_can_fail(tmp_path: Path) -> None:
    write_reports(make_report(make_stage(seed=1)), tmp_path / "a")
    write_reports(make_report(make_stage(seed=2, slower=1.5)), tmp_path / "b")
    done = run("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 0 and "| itl_p50_ms |" in done.stdout and "**worse**" in done.stdout
    assert run("compare", tmp_path / "a", tmp_path / "b" / "report.json", "--fail-if-worse").exit_code == 1
    assert run("compare", tmp_path / "b", tmp_path / "a", "--fail-if-worse").exit_code == 0


def documented() -> list[list[str]]:
    """The arguments of every `seta loadtest` in the documents."""
    lines = [line.strip() for name in DOCUMENTS for line in (REPO / name).read_text().splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("seta loadtest ")]


def test_every_documented_command_is_understood() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    commands = documented()
    assert len(commands) >= 4
    for arguments in commands:
        context = group.make_context("seta loadtest", list(arguments))
        if "compare" in arguments:
            group.commands["compare"].make_context("compare", arguments[1:])
        else:
            own = {"out", "api_key_file", "admin_key_file"}
            settings_from({name: value for name, value in context.params.items() if name not in own})
