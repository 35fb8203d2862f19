"""Cells on disk: a result file each, the state of those that are not done, one lock each.

DIR/cells/<method>-<key>.json    a finished cell; the key is a hash of everything that its numbers depend on
DIR/cells/<method>-<key>/        progress.json and the method's state after the last whole task
DIR/cells/<method>-<key>.lock    held while a process works on the cell; the kernel lets go when it dies
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from adapters.benchmark.methods import Method
from adapters.benchmark.records import CellResult, Progress, Run
from adapters.data import DataError

CELL_FORMAT = 1
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Cell:
    method: Method
    run: Run

    @property
    def key(self) -> str:
        identity = {
            "format": CELL_FORMAT,
            "kind": self.method.kind.name,
            "revision": self.method.kind.revision,
            "settings": self.method.settings.model_dump(mode="json"),
            "tasks": self.run.tasks,
            "data": self.run.data_sha256,
            "base": self.run.base_sha256,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def stem(self) -> str:
        return f"{self.method.kind.name}-{self.key}"


@dataclass(frozen=True)
class CellStore:
    """The folder `cells/`; several processes may work in it at once."""

    root: Path

    def work_dir(self, cell: Cell) -> Path:
        path = self.root / cell.stem
        path.mkdir(parents=True, exist_ok=True)
        return path

    def result(self, cell: Cell) -> CellResult | None:
        return _read(self.root / f"{cell.stem}.json", CellResult)

    def all_results(self) -> list[CellResult]:
        found = [_read(path, CellResult) for path in sorted(self.root.glob("*.json"))]
        return [result for result in found if result is not None]

    def finish(self, cell: Cell, result: CellResult) -> None:
        write_atomically(self.root / f"{cell.stem}.json", result.model_dump_json(indent=1).encode())

    def progress(self, cell: Cell) -> Progress:
        return _read(self.work_dir(cell) / "progress.json", Progress) or Progress()

    def save_progress(self, cell: Cell, progress: Progress) -> None:
        write_atomically(self.work_dir(cell) / "progress.json", progress.model_dump_json(indent=1).encode())

    @contextlib.contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """True while this process holds the cell; False if another one does."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / f"{cell.stem}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield _try_lock(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """The old file or the new one, whole, whenever the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        what = str(error).replace("\n", "; ")[:200]
        raise DataError(f"{path} cannot be used as a {model.__name__} ({what}); remove it to run it again") from None
