"""What is said while pip runs and when it fails; pip's own words are those of real runs."""

import sys
from pathlib import Path

import pytest

from deploy.installer import PipFailed, activity, pip, reason

LOG = Path("build/bootstrap.log")
NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError("HTTPSConnection(
host='pypi.org', port=443): Failed to establish a new connection: [Errno -3] Temporary failure in name resolution")':
ERROR: Could not find a version that satisfies the requirement six==1.17.0 (from versions: none)
ERROR: No matching distribution found for six==1.17.0
"""
NO_MATCH = "ERROR: No matching distribution found for six==99\n"
NO_SPACE = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
BACKEND = """\
  error: subprocess-exited-with-error
      error: package directory 'x' does not exist
error: metadata-generation-failed
"""


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (NO_NETWORK, "check the network"),
        (NO_SPACE, "the disk is full; make room"),
        (NO_MATCH, "pip failed: No matching distribution found for six==99"),
        (BACKEND, "pip failed: package directory 'x' does not exist"),
        ("", "pip failed: it gave no reason"),
    ],
)
def test_reason(output, sentence):
    assert sentence in reason(output, LOG)
    assert str(LOG) in reason(output, LOG)


def test_activity(tmp_path):
    (tmp_path / "one-1.0.dist-info").mkdir()
    assert activity([], tmp_path) == "asking the package index"
    said = ["Collecting numpy==2.3.5 (from -r cpu.lock (line 1))\n", "  Downloading numpy.whl\n"]
    assert activity(said, tmp_path) == "fetching package 1, numpy"
    assert "does not answer" in activity([*said, "WARNING: Retrying (Retry(total=4))\n"], tmp_path)
    assert activity([*said, "Installing collected packages: numpy\n"], tmp_path) == "installing, 1 packages in place"


def test_pip_runs_ticks_and_logs(tmp_path):
    ticks: list[str] = []
    pip(Path(sys.executable), ["--version"], tmp_path / "log", ticks.append)
    assert (tmp_path / "log").read_text().startswith("pip ")
    assert ticks


def test_pip_fails(tmp_path):
    with pytest.raises(PipFailed, match="pip failed|unknown command") as caught:
        pip(Path(sys.executable), ["no-such-command"], tmp_path / "log", lambda text: None)
    assert "no-such-command" in caught.value.output


def test_an_interruption_ends_pip(tmp_path):
    """A stand-in for `python` that runs for a minute; the tick raises as Ctrl-C does."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "venv" / "lib" / "python3.11").mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho $$ > {tmp_path}/pid\necho "Collecting x"\nexec sleep 60\n')
    python.chmod(0o755)

    def tick(text: str) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pip(python, [], tmp_path / "log", tick)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
