"""The few file-system steps a bank is made of.

Every change goes through `Disk`, so that a test can kill a writer before any single step. Reads are bounded and follow
no symbolic link below the bank's root.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .errors import RESTORE, BankCorrupt, BankIOError, BankNotFound, BankPathEscape, BankTooLarge

TEMPORARY_PREFIX = ".tmp-"


class Disk:
    """The steps that change the disk; tests override them to fail or to record."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def create(self, path: Path) -> int:
        """A new file's descriptor; fails if the name is taken, even by a dangling link."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def write(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def fsync_dir(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def touch(self, path: Path) -> None:
        os.utime(path)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def safe_path(root: Path, relative: str) -> Path:
    """`root / relative`, or BankPathEscape if the name or a link on the way could lead elsewhere.

    `root` itself is the caller's choice and may be a link.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\0" in relative or "\\" in relative:
        raise BankPathEscape(f"{relative!r} is not a plain path inside the bank; expected names without '..' or a root")
    path = root
    for part in pure.parts:
        path = path / part
        try:
            is_link = path.is_symlink()
        except OSError as error:
            raise read_error(relative, error) from None
        if is_link:
            raise BankPathEscape(f"{relative}: {part} is a symbolic link; a bank holds real files, copy the target in")
    return path


def read_file(root: Path, relative: str, max_bytes: int, expected_bytes: int | None = None) -> bytes:
    """The whole file, its size checked before a byte is read.

    Raises: BankNotFound, BankCorrupt (not a regular file, another size), BankTooLarge, BankPathEscape, BankIOError.
    """
    path = safe_path(root, relative)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise BankNotFound(f"{relative} does not exist; {RESTORE}, or use another generation") from None
    except OSError as error:
        raise read_error(relative, error) from None
    try:
        size = _regular_size(descriptor, relative)
        if expected_bytes is not None and size != expected_bytes:
            raise BankCorrupt(f"{relative} has {size} bytes, expected {expected_bytes}; {RESTORE}")
        if size > max_bytes:
            raise BankTooLarge(f"{relative} has {size} bytes, at most {max_bytes} are read; it is not part of a bank")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(size + 1)
    except OSError as error:
        raise read_error(relative, error) from None
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise BankCorrupt(f"{relative} changed from {size} to {len(data)} bytes while it was read; try again")
    return data


def atomic_write(disk: Disk, root: Path, relative: str, chunks: Iterable[bytes]) -> None:
    """Write a temporary file next to the target, fsync it, rename it, fsync the directory.

    At any crash the target is the old file or the new one, whole. `gc` removes the temporary file that a crash leaves.
    """
    target = safe_path(root, relative)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}.{secrets.token_hex(8)}")
    try:
        descriptor = disk.create(temporary)
        try:
            for chunk in chunks:
                disk.write(descriptor, chunk)
            disk.fsync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, target)
        disk.fsync_dir(target.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(relative, error) from error
        raise


def write_error(relative: str, error: OSError) -> BankIOError:
    return BankIOError(f"{relative} cannot be written ({error.strerror}); check free space and permissions")


def read_error(relative: str, error: OSError) -> BankIOError | BankPathEscape:
    if error.errno == errno.ELOOP:
        return BankPathEscape(f"{relative} is a symbolic link; a bank holds real files, copy the target in")
    return BankIOError(f"{relative} cannot be read ({error.strerror}); check its permissions")


def _regular_size(descriptor: int, relative: str) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BankCorrupt(f"{relative} is not a regular file; remove it and {RESTORE}")
    return status.st_size
