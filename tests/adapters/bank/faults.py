"""Disks that fail: the process dies before, or halfway through, a chosen step; then the power may go as well."""

import os
from collections.abc import Callable
from pathlib import Path

from adapters.bank.files import Disk


class Killed(BaseException):
    """The process died here: no handler of ordinary exceptions runs."""


class DyingDisk(Disk):
    """Dies at step `die_at` (None: never). A write dies halfway, every other step before it happens.

    What no fsync made durable is remembered, so that `lose_power` can take it away.
    """

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at = die_at
        self.steps: list[str] = []
        self._names: dict[int, Path] = {}
        self._unsynced_data: set[Path] = set()
        self._unsynced_names: list[tuple[Path, Callable[[], object]]] = []

    def mkdir(self, path: Path) -> None:
        self._step("mkdir")
        if not path.exists():
            self._unsynced_names.append((path.parent, path.rmdir))
        super().mkdir(path)

    def create(self, path: Path) -> int:
        self._step("create")
        descriptor = super().create(path)
        self._names[descriptor] = path
        self._unsynced_names.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return descriptor

    def write(self, descriptor: int, data: bytes) -> None:
        self._unsynced_data.add(self._names[descriptor])
        try:
            self._step("write")
        except Killed:
            os.write(descriptor, data[: len(data) // 2])
            raise
        super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._step("fsync")
        self._unsynced_data.discard(self._names[descriptor])

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        old, new = (target.read_bytes() if target.exists() else None), source.read_bytes()
        super().rename(source, target)
        if source in self._unsynced_data:
            self._unsynced_data.add(target)
            self._unsynced_data.discard(source)

        def undo() -> None:
            source.write_bytes(new)
            target.unlink() if old is None else target.write_bytes(old)

        self._unsynced_names.append((target.parent, undo))

    def fsync_dir(self, path: Path) -> None:
        self._step("fsync_dir")
        self._unsynced_names = [(directory, undo) for directory, undo in self._unsynced_names if directory != path]

    def touch(self, path: Path) -> None:
        self._step("touch")

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def lose_power(self, has_lost_names: bool) -> None:
        """Take away what was not fsynced: the files' bytes and, if asked, the new names too."""
        for path in self._unsynced_data:
            if path.exists():
                os.truncate(path, 0)
        for _, undo in reversed(self._unsynced_names) if has_lost_names else ():
            undo()

    def _step(self, name: str) -> None:
        if self.die_at == len(self.steps):
            raise Killed(f"before step {self.die_at}, {name}")
        self.steps.append(name)
