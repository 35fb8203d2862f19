"""A writer may die at any step, and the power may go with it: the previous generation stays whole."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters.bank import Bank, BankConflict, BankIOError
from adapters.bank.files import Disk

from .factory import empty_manifest, make_bank, next_manifest
from .faults import DyingDisk, Killed

NUM_PUBLISH_STEPS = 20  # expert, gate, manifest, CURRENT: create, write, fsync, rename, fsync_dir each


def learn_second_task(path: Path, disk: Disk) -> None:
    bank = Bank.open(path, disk)
    bank.publish(next_manifest(bank, bank.manifest(1), "beta"))


def retry(path: Path, disk: Disk) -> None:
    """Learn the task again, or publish again what is there."""
    bank = Bank.open(path, disk)
    if bank.generations()[-1] == 2:
        bank.publish(bank.manifest(2))
    else:
        learn_second_task(path, disk)


def assert_whole(path: Path, current: set[int]) -> None:
    bank = Bank.open(path)
    assert bank.verify() == []
    assert bank.current() in current
    manifest = bank.manifest(1)
    assert bank.load_expert(manifest, "alpha.unique")
    assert bank.load_gate(manifest)


def test_the_steps_are_all_there(tmp_path: Path) -> None:
    make_bank(tmp_path, ["alpha"])
    disk = DyingDisk()
    learn_second_task(tmp_path, disk)
    assert disk.steps == ["create", "write", "fsync", "rename", "fsync_dir"] * 4
    assert len(disk.steps) == NUM_PUBLISH_STEPS


@pytest.mark.parametrize("power", ["stays", "takes data", "takes data and names"])
@pytest.mark.parametrize("die_at", range(NUM_PUBLISH_STEPS))
def test_killed_while_publishing(tmp_path: Path, die_at: int, power: str) -> None:
    make_bank(tmp_path, ["alpha"])
    disk = DyingDisk(die_at)
    with pytest.raises(Killed):
        learn_second_task(tmp_path, disk)
    if power != "stays":
        disk.lose_power(has_lost_names=power == "takes data and names")
    assert_whole(tmp_path, current={1} if die_at < NUM_PUBLISH_STEPS - 1 else {1, 2})

    retry(tmp_path, Disk())
    assert_whole(tmp_path, current={2})
    Bank.open(tmp_path).gc(grace_seconds=0)
    assert_whole(tmp_path, current={2})
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("die_at", range(NUM_PUBLISH_STEPS))
def test_power_lost_after_a_kill_and_a_retry(tmp_path: Path, die_at: int) -> None:
    """The retry finds files that the dead writer had renamed but not made durable: it has to do that itself."""
    make_bank(tmp_path, ["alpha"])
    disk = DyingDisk(die_at)
    with pytest.raises(Killed):
        learn_second_task(tmp_path, disk)
    disk.die_at = None
    retry(tmp_path, disk)
    disk.lose_power(has_lost_names=True)
    assert_whole(tmp_path, current={2})


def test_killed_while_creating(tmp_path: Path) -> None:
    disk = DyingDisk()
    Bank.create(tmp_path / "whole", disk)
    disk.lose_power(has_lost_names=True)
    assert Bank.open(tmp_path / "whole").generations() == []
    for die_at in range(len(disk.steps)):
        path = tmp_path / f"bank{die_at}"
        dying = DyingDisk(die_at)
        with pytest.raises(Killed):
            Bank.create(path, dying)
        dying.lose_power(has_lost_names=True)
        bank = Bank.create(path)
        bank.publish(empty_manifest(bank))
        assert Bank.open(path).verify() == []


def test_killed_while_importing(tmp_path: Path) -> None:
    make_bank(tmp_path / "source").export(None, tmp_path / "archive.tar")
    make_bank(tmp_path / "counted", ["alpha"])
    disk = DyingDisk()
    Bank.open(tmp_path / "counted", disk).import_(tmp_path / "archive.tar")
    for die_at in range(len(disk.steps)):
        path = tmp_path / f"bank{die_at}"
        make_bank(path, ["alpha"])
        dying = DyingDisk(die_at)
        with pytest.raises(Killed):
            Bank.open(path, dying).import_(tmp_path / "archive.tar")
        dying.lose_power(has_lost_names=True)
        assert_whole(path, current={1})
        Bank.open(path).import_(tmp_path / "archive.tar")
        assert Bank.open(path).generations() == [0, 1, 2]
        assert_whole(path, current={1})


def test_killed_while_collecting_garbage(tmp_path: Path) -> None:
    make_bank(tmp_path / "counted")
    disk = DyingDisk()
    Bank.open(tmp_path / "counted", disk).gc(keep=[2], grace_seconds=0)
    for die_at in range(len(disk.steps)):
        path = tmp_path / f"bank{die_at}"
        make_bank(path)
        with pytest.raises(Killed):
            Bank.open(path, DyingDisk(die_at)).gc(keep=[2], grace_seconds=0)
        assert Bank.open(path).verify() == []
        Bank.open(path).gc(keep=[2], grace_seconds=0)
        assert Bank.open(path).generations() == [2]
        assert len(list((path / "objects/sha256").iterdir())) == 3


class FullDisk(Disk):
    def write(self, descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_typed_error_and_leaves_nothing(tmp_path: Path) -> None:
    make_bank(tmp_path, ["alpha"])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BankIOError, match=r"^objects/sha256/.* cannot be written \(No space left on device\)"):
        learn_second_task(tmp_path, FullDisk())
    assert sorted(tmp_path.rglob("*")) == before
    assert_whole(tmp_path, current={1})


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, ["alpha"])
    other = Bank.open(tmp_path, lock_seconds=0.05)
    with bank.writing(), pytest.raises(BankConflict, match="another process"):
        other.set_current(0)
    assert other.current() == 1  # and reading needs no lock
    other.set_current(0)


PUBLISHER = """
import sys
from adapters.bank import Bank
from tests.adapters.bank.factory import next_manifest
bank = Bank.open(sys.argv[1])
while True:
    bank.publish(next_manifest(bank, bank.manifest(), f"task{bank.current()}"))
"""


def test_a_real_process_killed_while_it_publishes(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, ["alpha"])
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", PUBLISHER, str(tmp_path)], cwd=root)
    try:
        deadline = time.monotonic() + 120
        while bank.current() < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.003)
    finally:
        process.kill()
        process.wait()
    served = bank.current()
    assert served >= 5
    assert bank.verify() == []
    bank.gc(grace_seconds=0)
    bank.publish(next_manifest(bank, bank.manifest(), "after"))  # the dead writer's lock is gone
    assert bank.verify() == []
    assert bank.current() > served
