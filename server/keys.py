"""API keys: how they are made, written down, read back and recognised.

A key is 256 random bits as text, shown once. What is kept is one line for each, in a file or an environment variable:

    # a comment
    alice sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The name is the tenant: limits and the prefix cache go by it. Two lines may share a name, so that a key can be replaced
without a gap. A plain SHA-256 is enough, and a slow password hash would only cost every request its time: there is
nothing to guess in 256 random bits.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from .config import ServeError

logger = logging.getLogger("seta.server")

KEY_PREFIX = "seta-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(rf"({_NAME.pattern})[ \t]+sha256:([0-9a-fA-F]{{64}})")
_MAX_BYTES = 1 << 20
_REREAD_SECONDS = 1.0


class KeysError(ServeError):
    """Keys that cannot be used; the message never holds what was written on a line, which may be a key."""


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def line_for(name: str, key: str) -> str:
    """The line that lets a key in. Raises: KeysError for a name that cannot be one."""
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r} cannot be a key's name; choose letters, digits, '.', '_' and '-', at most 64")
    return f"{name} sha256:{digest(key).hex()}"


def parse_keys(text: str) -> dict[bytes, str]:
    """Digest → name. Raises: KeysError that says which line is wrong."""
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise KeysError(f"line {number} is not 'NAME sha256:<64 hex digits>'; `seta keys new NAME` prints one")
        hashed = bytes.fromhex(match[2])
        if hashed in names:
            raise KeysError(f"line {number} repeats the key of {names[hashed]}; remove one of the two lines")
        names[hashed] = match[1]
    if not names:
        raise KeysError("there is no key; `seta keys new NAME` makes one")
    return names


class KeyRing:
    """The keys of one listener. What it was made from is read again, at most once a second, when a key is looked up.

    A change takes effect then. What cannot be read or understood changes nothing: the last good keys stand, and the log
    says so once. The content is compared, not the file's time, which some file systems round to seconds.

    Raises: KeysError if there are no good keys to begin with.
    """

    def __init__(self, source: str, read: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._read = read
        self._clock = clock
        self._complaint: str | None = None
        try:
            self._text = read()
            self._names = parse_keys(self._text)
        except KeysError as error:
            raise KeysError(f"{source}: {error}") from None
        self._read_at = clock()

    @property
    def digests(self) -> frozenset[bytes]:
        return frozenset(self._names)

    def find(self, key: str) -> str | None:
        """The name of a key, None for an unknown one. Every stored key is compared, each in constant time."""
        self._refresh()
        wanted = digest(key)
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, wanted):
                found = name
        return found

    def _refresh(self) -> None:
        if self._clock() - self._read_at < _REREAD_SECONDS:
            return
        self._read_at = self._clock()
        try:
            text = self._read()
            if text != self._text:
                self._names, self._text = parse_keys(text), text
                logger.warning("%s has changed: %d keys from now on", self.source, len(self._names))
            self._complaint = None
        except KeysError as error:
            if str(error) != self._complaint:
                logger.error("%s cannot be used: %s; the keys read before stay in force", self.source, error)
            self._complaint = str(error)


def read_file(path: Path) -> str:
    """Raises: KeysError for what is no small regular text file, or one that anybody on the machine may write to."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise KeysError("it is not a regular file")
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_BYTES + 1)
        if mode & stat.S_IWOTH:
            raise KeysError("every user of this machine may write to it; chmod o-w it")
        if len(content) > _MAX_BYTES:
            raise KeysError(f"it has more than {_MAX_BYTES} bytes")
        return content.decode()
    except OSError as error:
        raise KeysError(f"it cannot be read ({error.strerror or type(error).__name__})") from None
    except UnicodeDecodeError:
        raise KeysError("it is not UTF-8 text") from None
