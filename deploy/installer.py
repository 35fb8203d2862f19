"""Running pip where people can see it: one ticking line instead of five hundred, one sentence when it fails."""

import re
import subprocess
import threading
from pathlib import Path
from typing import Callable, List, Sequence, Tuple

from deploy.preflight import SetupError

TICK_SECONDS = 0.5
NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|Max retries exceeded|ConnectTimeout|ReadTimeout|Failed to establish"
    "|Connection (refused|reset|aborted|broken)|Temporary failure in name resolution|ProxyError|SSLError"
    "|Network is unreachable|ConnectionError|ProtocolError|timed out",
    re.IGNORECASE,
)
DISK = re.compile(r"No space left on device|Errno 28|Disk quota exceeded|Errno 122")
ERROR = re.compile(r"^\s*error: (?!subprocess-exited|metadata-generation)(.+)$", re.IGNORECASE | re.MULTILINE)
FETCHING = re.compile(r"^Collecting ([\w.-]+)")


class PipFailed(SetupError):
    """pip ended with an error; `output` is all it said."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def pip(python: Path, arguments: Sequence[str], log: Path, tick: Callable[[str], None]) -> None:
    """Run `python -m pip ...`. Raises: PipFailed, KeyboardInterrupt."""
    site = site_packages(python)
    code, output = run([str(python), "-m", "pip", *arguments], log, lambda lines: tick(activity(lines, site)))
    if code != 0:
        raise PipFailed(reason(output, log), output)


def run(command: Sequence[str], log: Path, look: Callable[[Sequence[str]], None]) -> Tuple[int, str]:
    """Run the command, append its output to `log`, `look` at the lines so far again and again: (exit code, output)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    lines: List[str] = []
    reader = threading.Thread(target=_read, args=(process, log, lines), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(TICK_SECONDS)
            look(lines)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return process.wait(), "".join(lines)


def activity(lines: Sequence[str], site: Path) -> str:
    """What pip is at, from what it has said; while it installs it says nothing, so look at what is there."""
    if any(line.startswith("Installing collected packages") for line in lines[-50:]):
        return f"installing, {len(list(site.glob('*.dist-info')))} packages in place"
    fetched = [match.group(1) for match in map(FETCHING.match, lines) if match]
    if lines and "Retrying" in lines[-1]:
        return "the package index does not answer, trying again"
    return f"fetching package {len(fetched)}, {fetched[-1]}" if fetched else "asking the package index"


def reason(output: str, log: Path) -> str:
    """One sentence for what pip ended with."""
    if DISK.search(output):
        return f"the disk is full; make room and start again (pip's output: {log})"
    if NETWORK.search(output):
        return f"the package index cannot be reached; check the network and pip's settings, start again ({log})"
    errors = ERROR.findall(output)
    return f"pip failed: {errors[-1] if errors else 'it gave no reason'} (all it said: {log})"


def site_packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python3.*")) / "site-packages"


def _read(process: "subprocess.Popen[str]", log: Path, lines: List[str]) -> None:
    assert process.stdout is not None
    with log.open("a") as file:
        for line in process.stdout:
            file.write(line)
            lines.append(line)
