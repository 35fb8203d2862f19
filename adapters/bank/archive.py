"""A generation in one file: a plain tar (ustar) of `manifest.json`, then the objects it names, or some of them: a bank
that has the others needs no second copy.

The reader parses the 512-byte headers itself, one at a time, and accepts nothing but those regular files, each once
and of the size the manifest says. So no name can lead anywhere, no link, sparse file or extended header is followed,
and no more is read than the manifest, bounded first, allows. Uncompressed: weights hardly compress.
"""

import contextlib
import tarfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .errors import BankCorrupt, BankNotFound, BankPathEscape, BankTooLarge
from .files import read_error
from .info import ObjectRef
from .manifest import MAX_MANIFEST_BYTES, Manifest
from .objects import object_path, verify_bytes

MANIFEST_NAME = "manifest.json"
MAX_ARCHIVE_BYTES = 256 << 30

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_AGAIN = "export it again"


def pack(manifest: Manifest, objects: Iterable[tuple[ObjectRef, bytes]]) -> Iterator[bytes]:
    """The archive's bytes, piece by piece; equal generations give equal archives."""
    _check_total(manifest)
    yield from _member(MANIFEST_NAME, manifest.to_bytes())
    for ref, data in objects:
        yield from _member(object_path(ref.object), data)
    yield _END


def packed_bytes(manifest: Manifest, refs: Iterable[ObjectRef]) -> int:
    """How long the archive of these objects is."""
    sizes = [len(manifest.to_bytes()), *(ref.object_bytes for ref in refs)]
    return sum(_BLOCK + size + -size % _BLOCK for size in sizes) + len(_END)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[BinaryIO]:
    """The archive's file. Raises: BankNotFound, BankCorrupt if it is no regular file, BankIOError."""
    if path.exists() and not path.is_file():
        raise BankCorrupt(f"archive {path.name} is not a regular file; {_AGAIN}")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            raise BankNotFound(f"archive {path.name} does not exist; check the path") from None
        except OSError as error:
            raise read_error(f"archive {path.name}", error) from None
        yield file


def unpack_manifest(file: BinaryIO) -> Manifest:
    """The first member; the file then stands at the objects."""
    name, size = _header(file) or ("", 0)
    if name != MANIFEST_NAME:
        raise BankCorrupt(f"the archive starts with {name[:120]!r}, expected {MANIFEST_NAME}; {_AGAIN}")
    if size > MAX_MANIFEST_BYTES:
        raise BankTooLarge(f"the archive's manifest has {size} bytes, at most {MAX_MANIFEST_BYTES} are read; {_AGAIN}")
    manifest = Manifest.from_bytes(_body(file, name, size), f"the archive's {MANIFEST_NAME}")
    _check_total(manifest)
    return manifest


def unpack_objects(
    file: BinaryIO, manifest: Manifest, stored: Collection[ObjectRef] = ()
) -> Iterator[tuple[ObjectRef, bytes]]:
    """The archive's objects, each once, size checked before and digest after it is read.

    Raises: BankCorrupt if one that the manifest names is neither in the archive nor among `stored`.
    """
    expected = {object_path(ref.object): ref for ref in manifest.refs}
    while (header := _header(file)) is not None:
        name, size = header
        ref = expected.pop(name, None)
        if ref is None:
            raise BankCorrupt(f"the archive holds {name[:120]!r}, twice or not in its manifest; {_AGAIN}")
        if size != ref.object_bytes:
            raise BankCorrupt(f"the archive's {name} has {size} bytes, expected {ref.object_bytes}; {_AGAIN}")
        data = _body(file, name, size)
        verify_bytes(data, ref)
        yield ref, data
    lacking = [name for name, ref in expected.items() if ref not in stored]
    if lacking:
        raise BankCorrupt(f"the archive lacks {len(lacking)} object(s), first {lacking[0]}; {_AGAIN}")


def _check_total(manifest: Manifest) -> None:
    total = sum(ref.object_bytes for ref in manifest.refs)
    if total > MAX_ARCHIVE_BYTES:
        raise BankTooLarge(f"the objects have {total} bytes, an archive at most {MAX_ARCHIVE_BYTES}; copy the bank")


def _member(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % _BLOCK)


def _header(file: BinaryIO) -> tuple[str, int] | None:
    """Name and size of the next regular file, None at the end mark."""
    block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        raise BankCorrupt(f"the archive is cut short or not a tar file ({error}); {_AGAIN}") from None
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or info.issym() or info.islnk():
        raise BankPathEscape(
            f"the archive holds {info.name[:120]!r}, which is a link or leads out of it; do not use it"
        )
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
        raise BankCorrupt(f"the archive's {info.name[:120]!r} is not a plain file; {_AGAIN}")
    return info.name, info.size


def _body(file: BinaryIO, name: str, size: int) -> bytes:
    data = file.read(size)
    padding = -size % _BLOCK
    if len(data) != size or len(file.read(padding)) != padding:
        raise BankCorrupt(f"the archive ends within {name}; {_AGAIN}")
    return data
