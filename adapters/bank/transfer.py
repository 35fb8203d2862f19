"""Move one generation between banks as a file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .archive import open_archive, pack, unpack_manifest, unpack_objects
from .errors import BankConflict, BankMismatch, shorten
from .experts import check_object
from .files import atomic_write
from .manifest import Manifest, manifest_path
from .objects import decode_object, read_object_bytes, write_object

if TYPE_CHECKING:
    from .store import Bank


def export_generation(bank: "Bank", manifest: Manifest, path: Path) -> None:
    """Write the generation to a new file, atomically, once all of it is verified."""
    if os.path.lexists(path):
        raise BankConflict(f"{path.name} exists; remove it, or choose another name")
    bank.check_objects(manifest)
    objects = ((ref, read_object_bytes(bank.root, ref)) for ref in manifest.refs)
    atomic_write(bank.disk, path.parent, path.name, pack(manifest, objects))


def import_generation(bank: "Bank", path: Path) -> Manifest:
    """Read the archive twice: once to verify all of it, then to write; objects first, the manifest after them."""
    with open_archive(path) as file:
        manifest = unpack_manifest(file)
        start = file.tell()
        for ref, data in unpack_objects(file, manifest):
            check_object(decode_object(data, ref), ref, manifest)
        with bank.writing():
            is_known = _check_may_enter(bank, manifest)
            file.seek(start)
            for _, data in unpack_objects(file, manifest):
                write_object(bank.disk, bank.root, data)
            if not is_known:
                where = manifest_path(manifest.generation)
                atomic_write(bank.disk, bank.root, where, [manifest.to_bytes()])
            if not bank.has_current():
                bank.write_current(manifest.generation)
    return manifest


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
