"""Looking after a bank: find what is damaged, delete what nothing needs."""

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import BankError, BankNotFound
from .files import TEMPORARY_PREFIX, write_error
from .manifest import GENERATIONS_DIR, Manifest, manifest_path
from .objects import OBJECTS_DIR, object_digest

if TYPE_CHECKING:
    from .store import Bank

GRACE_SECONDS = 3600.0


class Collected(NamedTuple):
    """What `gc` removed."""

    generations: list[int]
    num_files: int
    file_bytes: int


def find_problems(bank: "Bank") -> list[str]:
    """One line for everything that is missing or bad in any generation; empty for a whole bank."""
    problems: list[str] = []
    checked: set[object] = set()
    numbers = bank.generations()
    for number in numbers:
        try:
            manifest = bank.manifest(number)
        except BankError as error:
            problems.append(_line(error))
            continue
        problems.extend(_object_problems(bank, manifest, checked))
    try:
        if numbers and (current := bank.current()) not in numbers:
            problems.append(f"CURRENT says {current}, which does not exist; choose a generation (use N)")
    except BankError as error:
        problems.append(_line(error))
    return problems


def _object_problems(bank: "Bank", manifest: Manifest, checked: set[object]) -> list[str]:
    """Generations share experts, so what was checked for an earlier one (`checked`) is not read again."""
    problems: list[str] = []
    reads: list[tuple[object, Callable[[], object]]] = [(manifest.gate.ref, partial(bank.load_gate, manifest))]
    reads += [((e, manifest.layout), partial(bank.load_expert, manifest, e)) for e in manifest.experts]
    reads += [] if manifest.scores is None else [(manifest.scores.ref, partial(bank.load_scores, manifest))]
    for key, read in reads:
        if key in checked:
            continue
        checked.add(key)
        try:
            read()
        except BankError as error:
            problems.append(f"generation {manifest.generation}: {_line(error)}")
    return problems


def collect_garbage(bank: "Bank", keep: Collection[int] | None, grace_seconds: float) -> Collected:
    """Delete the manifests outside `keep`, then the objects that no manifest names. The caller holds the writer lock.

    CURRENT's generation and the newest (its number must not be used again) always stay. Objects younger than
    `grace_seconds` stay too: a trainer may be about to publish them. Manifests go first, so a crash in between leaves
    objects that the next run deletes, never a manifest without objects.
    """
    numbers = bank.generations()
    unknown = sorted(set(keep or ()) - set(numbers))
    if unknown:
        raise BankNotFound(f"generations {unknown} do not exist, the bank has {numbers}; keep some of those")
    kept = {*(numbers if keep is None else keep), *numbers[-1:]}
    if bank.has_current():
        kept.add(bank.current())
    needed = _needed_objects(bank, kept)  # an unreadable manifest stops us before anything is deleted
    dropped = [number for number in numbers if number not in kept]
    manifests = [bank.root / manifest_path(number) for number in dropped]
    rubbish = _temporary_files(bank.root) + _unneeded_objects(bank.root, needed, time.time() - grace_seconds)
    try:
        sizes = [path.lstat().st_size for path in manifests + rubbish]
        for paths in (manifests, rubbish):
            for path in paths:
                bank.disk.unlink(path)
            for directory in sorted({path.parent for path in paths}):
                bank.disk.fsync_dir(directory)
    except OSError as error:
        raise write_error("the bank", error) from error
    return Collected(dropped, len(sizes), sum(sizes))


def _needed_objects(bank: "Bank", kept: Collection[int]) -> set[str]:
    return {ref.object for number in kept for ref in bank.manifest(number).refs}


def remove_temporary_files(bank: "Bank") -> None:
    """The caller holds the writer lock."""
    try:
        for path in _temporary_files(bank.root):
            bank.disk.unlink(path)
    except OSError as error:
        raise write_error("the bank", error) from error


def _temporary_files(root: Path) -> list[Path]:
    """Under the writer lock nobody is writing one, so each was left by a crash."""
    directories = (root, root / GENERATIONS_DIR, root / OBJECTS_DIR)
    return [path for directory in directories for path in sorted(directory.glob(f"{TEMPORARY_PREFIX}*"))]


def _unneeded_objects(root: Path, needed: set[str], written_before: float) -> list[Path]:
    found = [(path, object_digest(path.name)) for path in sorted((root / OBJECTS_DIR).iterdir())]
    unneeded = [path for path, digest in found if digest and digest not in needed]
    return [path for path in unneeded if path.lstat().st_mtime <= written_before]


def _line(error: BankError) -> str:
    return f"{type(error).__name__}: {error}"
