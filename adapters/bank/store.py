"""A bank on disk: immutable objects, small manifests, one pointer.

    bank/objects/sha256/<digest>.safetensors   an expert or a gate; never rewritten
    bank/generations/00004.json                a manifest
    bank/CURRENT                               the number of the generation that serves

A generation is published in three moves: its objects (`put_object`), its manifest, CURRENT. Each file is written beside
its final name, fsynced, renamed, and its directory fsynced, so a crash anywhere leaves the previous generation whole,
and publishing the same manifest again finishes the work.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from torch import Tensor

from .errors import RESTORE, BankConflict, BankCorrupt, BankMismatch, BankNotFound, shorten
from .experts import check_expert, check_finite
from .files import Disk, atomic_write, read_error, read_file, safe_path, write_error
from .lock import LOCK_NAME, writer_lock
from .manifest import MAX_MANIFEST_BYTES, ExpertInfo, Manifest, ObjectRef
from .objects import OBJECTS_DIR, encode_object, read_object, write_object

GENERATIONS_DIR = "generations"
CURRENT = "CURRENT"

_DIRECTORIES = ("objects", OBJECTS_DIR, GENERATIONS_DIR)
_MANIFEST_NAME = re.compile(r"([0-9]{5,9})\.json")
_NUMBER = re.compile(rb"(0|[1-9][0-9]{0,8})\n")


def manifest_path(generation: int) -> str:
    return f"{GENERATIONS_DIR}/{generation:05d}.json"


class Bank:
    """One bank. Reading takes no lock and never sees half a write; writers exclude each other through a lock file."""

    def __init__(self, path: str | os.PathLike[str], disk: Disk | None = None, lock_seconds: float = 30.0) -> None:
        self.root = Path(path)
        self._disk = disk or Disk()
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
        """Store an expert's or a gate's tensors; `(digest, bytes)` for the manifest. Storing them twice is free."""
        data = encode_object(tensors)
        with self._writing():
            return write_object(self._disk, self.root, data)

    def load_expert(self, manifest: Manifest, expert_id: str) -> dict[str, Tensor]:
        """An expert's tensors, fully verified against `manifest`."""
        return self._read_expert(manifest, manifest.expert(expert_id))

    def load_gate(self, manifest: Manifest) -> dict[str, Tensor]:
        """The gate's tensors: digest, size and finiteness verified; `adapters.gate` checks the names and shapes."""
        tensors = read_object(self.root, manifest.gate.ref)
        check_finite(tensors, f"gate of generation {manifest.generation}")
        return tensors

    def publish(self, manifest: Manifest) -> None:
        """Verify all that the manifest refers to, write the manifest, then make it CURRENT.

        Publishing the newest generation's very manifest again only makes it CURRENT: the retry after a crash.
        Raises: BankConflict if the number is not the next one, BankMismatch if the parent has another base,
        BankNotFound for a missing parent or object, BankCorrupt for a bad one.
        """
        where = manifest_path(manifest.generation)
        data = manifest.to_bytes()
        manifest = Manifest.from_bytes(data, where)  # model_copy(update=...) checks nothing, so check here
        with self._writing():
            is_retry = self._check_is_next(manifest, data)
            self._check_objects(manifest)
            if is_retry:
                self._disk.fsync_dir(self.root / GENERATIONS_DIR)
            else:
                atomic_write(self._disk, self.root, where, [data])
            self._write_current(manifest.generation)

    def set_current(self, generation: int) -> None:
        """Serve another generation, older or newer, once it is verified whole."""
        with self._writing():
            self._check_objects(self.manifest(generation))
            self._write_current(generation)

    def _check_is_next(self, manifest: Manifest, data: bytes) -> bool:
        newest = max(self.generations(), default=-1)
        if manifest.generation == newest and read_file(self.root, manifest_path(newest), MAX_MANIFEST_BYTES) == data:
            return True
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
        return False

    def _check_objects(self, manifest: Manifest) -> None:
        self.load_gate(manifest)
        for expert in manifest.experts:
            self._read_expert(manifest, expert)

    def _read_expert(self, manifest: Manifest, expert: ExpertInfo) -> dict[str, Tensor]:
        tensors = read_object(self.root, expert.ref)
        check_expert(tensors, expert, manifest)
        return tensors

    def _write_current(self, generation: int) -> None:
        atomic_write(self._disk, self.root, CURRENT, [f"{generation}\n".encode()])

    def _make_directories(self) -> None:
        if self.root.exists():
            strangers = set(os.listdir(self.root)) - {"objects", GENERATIONS_DIR, LOCK_NAME}
            if strangers or any(file.is_file() for name in _DIRECTORIES for file in (self.root / name).glob("*")):
                raise BankConflict(f"{self.root.name!r} is not empty; open it, or create the bank in a new directory")
        for path in (self.root, *(self.root / name for name in _DIRECTORIES)):
            self._disk.mkdir(path)
            self._disk.fsync_dir(path.parent)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with writer_lock(self.root, self._lock_seconds):
            yield
