"""Move one generation between banks as a file."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .archive import open_archive, pack, unpack_manifest, unpack_objects
from .errors import BankConflict, BankMismatch, shorten
from .experts import check_object
from .files import atomic_write
from .info import ObjectRef
from .manifest import Manifest, manifest_path
from .objects import decode_object, is_stored, read_object, read_object_bytes, write_object

if TYPE_CHECKING:
    from .store import Bank


def export_generation(bank: "Bank", manifest: Manifest, path: Path) -> None:
    """Write the generation to a new file, atomically, once all of it is verified."""
    if os.path.lexists(path):
        raise BankConflict(f"{path.name} exists; remove it, or choose another name")
    atomic_write(bank.disk, path.parent, path.name, export_chunks(bank, manifest, manifest.refs))


def export_chunks(bank: "Bank", manifest: Manifest, refs: Collection[ObjectRef]) -> Iterator[bytes]:
    """The archive of the manifest and of `refs`, once all of the generation is verified."""
    bank.check_objects(manifest)
    return pack(manifest, ((ref, read_object_bytes(bank.root, ref)) for ref in refs))


def missing_objects(bank: "Bank", manifest: Manifest) -> list[ObjectRef]:
    """What an archive must bring, so that the bank has all that the manifest names.

    Raises: BankMismatch if it is for another base than the bank, BankConflict if its number is taken by another.
    """
    _check_may_enter(bank, manifest)
    return [ref for ref in manifest.refs if not is_stored(bank.root, ref)]


def import_archive(bank: "Bank", path: Path) -> Manifest:
    with open_archive(path) as file:
        return import_generation(bank, file)


def import_generation(bank: "Bank", file: BinaryIO) -> Manifest:
    """Read the archive twice: once to verify all of it, then to write; objects first, the manifest after them.

    Objects that it lacks must be in the bank, and are verified there.
    """
    file.seek(0)
    manifest = unpack_manifest(file)
    start = file.tell()
    _check_all(bank, file, manifest)
    with bank.writing():
        is_known = _check_may_enter(bank, manifest)
        file.seek(start)
        for _, data in unpack_objects(file, manifest, _stored(bank, manifest)):
            write_object(bank.disk, bank.root, data)
        bank.sync_objects()  # those it lacks too: their writer may have died between its rename and its fsync
        if not is_known:
            atomic_write(bank.disk, bank.root, manifest_path(manifest.generation), [manifest.to_bytes()])
        if not bank.has_current():
            bank.write_current(manifest.generation)
    return manifest


def _check_all(bank: "Bank", file: BinaryIO, manifest: Manifest) -> None:
    brought, experts = set(), manifest.experts_by_object
    for ref, data in unpack_objects(file, manifest, _stored(bank, manifest)):
        check_object(decode_object(data, ref), ref, manifest, experts.get(ref, []))
        brought.add(ref)
    for ref in set(manifest.refs) - brought:
        check_object(read_object(bank.root, ref), ref, manifest, experts.get(ref, []))


def _stored(bank: "Bank", manifest: Manifest) -> set[ObjectRef]:
    return {ref for ref in manifest.refs if is_stored(bank.root, ref)}


def _check_may_enter(bank: "Bank", manifest: Manifest) -> bool:
    """Whether this very generation is in the bank already."""
    numbers = bank.generations()
    if numbers and bank.manifest(numbers[-1]).base != manifest.base:
        raise BankMismatch(
            f"the archive is for base {shorten(manifest.base.weights_sha256)}, the bank for another; "
            "a bank belongs to one base model, import into a new bank"
        )
    if manifest.generation not in numbers:
        return False
    if bank.manifest(manifest.generation) != manifest:
        raise BankConflict(f"generation {manifest.generation} exists with other contents; import into a new bank")
    return True
