"""C that is compiled on the machine that serves, once: with the instructions that its processor has.

A library is kept in the user's cache, `$XDG_CACHE_HOME/seta` or `~/.cache/seta`, under a hash of its source, its flags
and the compiler. A directory that others could write to is not trusted: then it is compiled anew for this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

COMPILE_SECONDS = 60


def library(source_name: str, flags: Sequence[str]) -> ctypes.PyDLL:
    """A source of this package, compiled and loaded; the calls keep Python's lock.

    Giving the lock up for microseconds may cost milliseconds to get it back. Raises: OSError, SubprocessError.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    command = [compiler, "-O3", "-std=gnu11", "-shared", "-fPIC", *flags]
    source = files("seta_runtime.ops").joinpath(source_name).read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS, check=True).stdout
    name = hashlib.sha256(b"\0".join([source, version, *map(str.encode, command)])).hexdigest()[:32] + ".so"
    cache = _cache()
    if cache is not None:
        kept = cache / name
        if kept.exists():
            with contextlib.suppress(OSError):
                return ctypes.PyDLL(str(kept))  # else it is damaged, and made anew in its place
        _compile(command, source, kept)
        return ctypes.PyDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="seta-") as folder:
        _compile(command, source, Path(folder) / name)
        return ctypes.PyDLL(str(Path(folder) / name))  # once loaded, the file is not needed


def processor_flags() -> set[str]:
    """What the processor can do, by Linux's names; nothing where that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _compile(command: Sequence[str], source: bytes, target: Path) -> None:
    """Whole or not at all, also when several processes do it at once, or the power fails."""
    handle, unfinished = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        arguments = [*command, "-x", "c", "-", "-o", unfinished]
        subprocess.run(arguments, input=source, capture_output=True, timeout=COMPILE_SECONDS, check=True)
        with open(unfinished, "rb") as written:
            os.fsync(written.fileno())
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def _cache() -> Path | None:
    """Our directory in the user's cache; None if it cannot be made, or others may write to it."""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seta"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except (OSError, RuntimeError):  # no home, or not ours to write to
        return None
    is_ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return path if is_ours and os.access(path, os.W_OK) else None
