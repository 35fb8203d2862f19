"""A bank on disk: immutable objects, small manifests, one pointer.

    bank/objects/sha256/<digest>.safetensors   an expert, a gate or block scores; never rewritten
    bank/generations/00004.json                a manifest
    bank/CURRENT                               the number of the generation that serves

A generation is published in three moves: its objects (`put_object`), its manifest, CURRENT. Each file is written beside
its final name, fsynced, renamed, and its directory fsynced, so a crash anywhere leaves the previous generation whole,
and publishing the same manifest again finishes the work.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

from torch import Tensor

from .errors import RESTORE, BankConflict, BankCorrupt, BankMismatch, BankNotFound, shorten
from .experts import check_expert, check_finite, check_object
from .files import Disk, atomic_write, read_error, read_file, safe_path, write_error
from .info import ExpertInfo, ObjectRef
from .lock import LOCK_NAME, learner_lock, writer_lock
from .manifest import GENERATIONS_DIR, MAX_MANIFEST_BYTES, Manifest, manifest_path
from .objects import (
    OBJECTS_DIR,
    encode_object,
    is_stored,
    read_object,
    read_object_bytes,
    verify_bytes,
    write_object,
)
from .transfer import export_chunks, export_generation, import_archive, import_generation, missing_objects
from .upkeep import GRACE_SECONDS, Collected, collect_garbage, find_problems, remove_temporary_files

CURRENT = "CURRENT"

_DIRECTORIES = ("objects", OBJECTS_DIR, GENERATIONS_DIR)
_MANIFEST_NAME = re.compile(r"([0-9]{5,9})\.json")
_NUMBER = re.compile(rb"(0|[1-9][0-9]{0,8})\n")


class Bank:
    """One bank. Reading takes no lock and never sees half a write; writers exclude each other through a lock file."""

    def __init__(self, path: str | os.PathLike[str], disk: Disk | None = None, lock_seconds: float = 30.0) -> None:
        self.root = Path(path)
        self.disk = disk or Disk()
        self._lock_seconds = lock_seconds

    @classmethod
    def create(cls, path: str | os.PathLike[str], disk: Disk | None = None, lock_seconds: float = 30.0) -> Self:
        """An empty bank in a new or empty directory. Raises: BankConflict if anything is there, BankIOError."""
        bank = cls(path, disk, lock_seconds)
        try:
            bank._make_directories()
        except OSError as error:
            raise write_error("the bank's directory", error) from error
        return bank

    @classmethod
    def open(cls, path: str | os.PathLike[str], disk: Disk | None = None, lock_seconds: float = 30.0) -> Self:
        """Raises: BankNotFound if the directory is not a bank, BankPathEscape if part of it is a link."""
        bank = cls(path, disk, lock_seconds)
        missing = [name for name in _DIRECTORIES if not safe_path(bank.root, name).is_dir()]
        if missing:
            raise BankNotFound(f"{bank.root.name!r} is not a bank, it has no {missing[0]}/; check the path")
        return bank

    def current(self) -> int:
        """The generation that serves. Raises: BankNotFound for a bank without one, BankCorrupt."""
        try:
            data = read_file(self.root, CURRENT, max_bytes=16)
        except BankNotFound:
            raise BankNotFound("CURRENT does not exist; publish a generation, or choose one (use N)") from None
        match = _NUMBER.fullmatch(data)
        if match is None:
            raise BankCorrupt(f"CURRENT holds {data!r}, expected a number and a newline; choose a generation (use N)")
        return int(match[1])

    def generations(self) -> list[int]:
        """The numbers of all manifests, ascending."""
        try:
            names = os.listdir(safe_path(self.root, GENERATIONS_DIR))
        except OSError as error:
            raise read_error(GENERATIONS_DIR, error) from None
        found = [int(match[1]) for match in map(_MANIFEST_NAME.fullmatch, names) if match]
        return sorted(number for number in found if manifest_path(number).rpartition("/")[2] in names)

    def manifest(self, generation: int | None = None) -> Manifest:
        """The manifest of a generation, or of CURRENT. Raises: BankNotFound, BankCorrupt, BankFormatTooNew."""
        number = self.current() if generation is None else generation
        where = manifest_path(number)
        manifest = Manifest.from_bytes(read_file(self.root, where, MAX_MANIFEST_BYTES), where)
        if manifest.generation != number:
            raise BankCorrupt(f"{where} says it is generation {manifest.generation}; {RESTORE}")
        return manifest

    def put_object(self, tensors: Mapping[str, Tensor]) -> ObjectRef:
        """Store an object's tensors; `(digest, bytes)` for the manifest. Storing them twice is free."""
        data = encode_object(tensors)
        with self.writing():
            return write_object(self.disk, self.root, data)

    def check_bytes(self, ref: ObjectRef) -> None:
        """Compare an object's file with its size and digest. Raises: BankNotFound, BankCorrupt, BankIOError."""
        verify_bytes(read_object_bytes(self.root, ref), ref)

    def load_expert(self, manifest: Manifest, expert: str | ExpertInfo) -> dict[str, Tensor]:
        """An expert's tensors, fully verified against `manifest`; an id is looked up in it."""
        expert = manifest.expert(expert) if isinstance(expert, str) else expert
        tensors = read_object(self.root, expert.ref)
        check_expert(tensors, expert, manifest)
        return tensors

    def load_gate(self, manifest: Manifest) -> dict[str, Tensor]:
        """The gate's tensors: digest, size and finiteness verified; `adapters.gate` checks the names and shapes."""
        tensors = read_object(self.root, manifest.gate.ref)
        check_finite(tensors, f"gate of generation {manifest.generation}")
        return tensors

    def load_scores(self, manifest: Manifest) -> dict[str, Tensor] | None:
        """The block scores' tensors, verified like the gate's; `adapters.score_history` checks the rest.

        None for a generation without any.
        """
        if manifest.scores is None:
            return None
        tensors = read_object(self.root, manifest.scores.ref)
        check_finite(tensors, f"scores of generation {manifest.generation}")
        return tensors

    def publish(self, manifest: Manifest, make_current: bool = True) -> None:
        """Verify all that the manifest refers to, write the manifest, then make it CURRENT (unless told not to).

        Publishing the newest generation's very manifest again only makes it CURRENT: the retry after a crash.
        Raises: BankConflict if the number is not the next one, BankMismatch if the parent has another base,
        BankNotFound for a missing parent or object, BankCorrupt for a bad one.
        """
        where = manifest_path(manifest.generation)
        data = manifest.to_bytes()
        manifest = Manifest.from_bytes(data, where)  # model_copy(update=...) checks nothing, so check here
        with self.writing():
            self._check_is_next(manifest, data)
            self.check_objects(manifest)
            atomic_write(self.disk, self.root, where, [data])
            if make_current:
                self.write_current(manifest.generation)

    def set_current(self, generation: int) -> None:
        """Serve another generation, older or newer, once it is verified whole."""
        with self.writing():
            self.check_objects(self.manifest(generation))
            self.write_current(generation)

    def point_to(self, manifest: Manifest) -> None:
        """Make a generation CURRENT for a caller that holds all of it, verified, in memory.

        Nothing is read again but the manifest: it must still be this one. Raises: BankNotFound if it, or an object it
        needs, is no longer in the bank (a restart could not bring it back), BankConflict if it is another.
        """
        with self.writing():
            if self.manifest(manifest.generation) != manifest:
                raise BankConflict(f"generation {manifest.generation} has other contents in the bank than in memory")
            if missing := [ref for ref in manifest.refs if not is_stored(self.root, ref)]:
                raise BankNotFound(f"generation {manifest.generation}: {len(missing)} object(s) are gone; {RESTORE}")
            self.write_current(manifest.generation)

    def verify(self) -> list[str]:
        """One line for every problem in any generation; empty for a whole bank."""
        return find_problems(self)

    def gc(self, keep: Collection[int] | None = None, grace_seconds: float = GRACE_SECONDS) -> Collected:
        """Delete the generations outside `keep` (None keeps all), unneeded objects, and stale temporaries.

        CURRENT's generation, the newest one, and objects younger than `grace_seconds` always stay.
        """
        with self.writing():
            return collect_garbage(self, keep, grace_seconds)

    def export(self, generation: int | None, archive_path: str | os.PathLike[str]) -> Manifest:
        """Write one verified generation (None: CURRENT) to a new file. Raises: BankConflict if the file exists."""
        manifest = self.manifest(generation)
        export_generation(self, manifest, Path(archive_path))
        return manifest

    def missing_objects(self, manifest: Manifest) -> list[ObjectRef]:
        """What an archive of `manifest` must hold to be imported here. Raises: BankMismatch, BankConflict."""
        return missing_objects(self, manifest)

    def export_chunks(self, manifest: Manifest, refs: Collection[ObjectRef]) -> Iterator[bytes]:
        """The bytes of an archive that holds only these objects (see `archive.packed_bytes`); all is verified first."""
        return export_chunks(self, manifest, refs)

    def import_file(self, file: BinaryIO) -> Manifest:
        """As `import_`, from an open file that can seek."""
        return import_generation(self, file)

    def import_(self, archive_path: str | os.PathLike[str]) -> Manifest:
        """Bring in an exported generation under its own number; everything is verified before anything is written.

        Objects that the bank has already may be left out of the archive. Its parent need not be here. It becomes
        CURRENT only in a bank that has none. Importing what is here already changes nothing, except that missing or
        damaged objects are replaced.
        Raises: BankConflict if the number is taken by another manifest, BankMismatch for another base model,
        BankPathEscape for links and names that lead elsewhere, BankTooLarge, BankCorrupt.
        """
        return import_archive(self, Path(archive_path))

    def check_objects(self, manifest: Manifest) -> None:
        """Read and verify every object of a manifest, each once."""
        experts = manifest.experts_by_object
        for ref in manifest.refs:
            check_object(read_object(self.root, ref), ref, manifest, experts.get(ref, []))

    def has_current(self) -> bool:
        return safe_path(self.root, CURRENT).exists()

    def write_current(self, generation: int) -> None:
        """For callers that hold the writer lock and have verified the generation; others use `set_current`."""
        atomic_write(self.disk, self.root, CURRENT, [f"{generation}\n".encode()])

    def sync_objects(self) -> None:
        """Make the names of all objects durable. Raises: BankIOError."""
        try:
            self.disk.fsync_dir(self.root / OBJECTS_DIR)
        except OSError as error:
            raise write_error(OBJECTS_DIR, error) from error

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """The writer lock: one writer at a time, across processes; not re-entrant."""
        return writer_lock(self.root, self._lock_seconds)

    def learning(self) -> contextlib.AbstractContextManager[None]:
        """For the one process that learns into the bank; it takes the writer lock too, for each write."""
        return learner_lock(self.root)

    def tidy(self) -> None:
        """Remove the temporary files of writers that were killed."""
        with self.writing():
            remove_temporary_files(self)

    def _check_is_next(self, manifest: Manifest, data: bytes) -> None:
        newest = max(self.generations(), default=-1)
        if manifest.generation == newest and read_file(self.root, manifest_path(newest), MAX_MANIFEST_BYTES) == data:
            return  # its writer died before CURRENT
        if manifest.generation != newest + 1:
            raise BankConflict(
                f"generation {manifest.generation} cannot be published, the next is {newest + 1}; "
                "somebody published first: read the bank again and build on it"
            )
        if manifest.parent is not None and self.manifest(manifest.parent).base != manifest.base:
            raise BankMismatch(
                f"generation {manifest.generation} is for base {shorten(manifest.base.weights_sha256)}, its parent "
                f"{manifest.parent} for another; a bank belongs to one base model, create a new bank"
            )

    def can_be_made(self) -> bool:
        """Whether there is nothing, or only what a `create` left that was killed."""
        if not self.root.exists():
            return True
        strangers = set(os.listdir(self.root)) - {"objects", GENERATIONS_DIR, LOCK_NAME}
        return not strangers and not any(f.is_file() for name in _DIRECTORIES for f in (self.root / name).glob("*"))

    def _make_directories(self) -> None:
        if not self.can_be_made():
            raise BankConflict(f"{self.root.name!r} is not empty; open it, or create the bank in a new directory")
        for path in (self.root, *(self.root / name for name in _DIRECTORIES)):
            self.disk.mkdir(path)
            self.disk.fsync_dir(path.parent)
