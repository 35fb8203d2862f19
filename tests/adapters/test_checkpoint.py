"""Checkpoints: read back bit for bit, whole or not there at whatever step the writer dies, gone when removed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from adapters.bank import Bank, BankIOError
from adapters.bank.files import Disk
from adapters.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    CheckpointError,
    CheckpointInfo,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)

from .bank.factory import make_bank
from .bank.faults import DyingDisk, Killed

INFO = CheckpointInfo(
    task="colours",
    recipe_sha256="a" * 64,
    parent_sha256="b" * 64,
    settings={"steps": 3},
    started=datetime(2026, 1, 2, tzinfo=UTC),
    step=2,
    state={"losses": [0.1, 1 / 3, 2.5e-17], "rng": {"words": list(range(624)), "gauss": None}, "unicode": 'ü\n"'},
)
TENSORS = {
    "parameter": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "generator": torch.Generator().manual_seed(7).get_state(),
    "step": torch.tensor(3.0),
    "bf16": torch.ones(2, dtype=torch.bfloat16),
}


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None and found.info == expected.info
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)


def with_step(step: int) -> Checkpoint:
    return Checkpoint(INFO.model_copy(update={"step": step}), TENSORS)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    assert read_checkpoint(bank) is None
    for checkpoint in (Checkpoint(INFO), with_step(3), with_step(4)):
        write_checkpoint(bank, checkpoint)
        assert_same(read_checkpoint(bank), checkpoint)
    assert bank.verify() == []
    remove_checkpoint(bank)
    assert read_checkpoint(bank) is None and not (tmp_path / ".learning").exists()
    remove_checkpoint(bank)


@pytest.mark.parametrize("power", ["stays", "goes"])
def test_a_writer_that_dies_leaves_the_one_before(power: str, tmp_path: Path) -> None:
    bank, counting = make_bank(tmp_path, tasks=()), DyingDisk()
    write_checkpoint(Bank.open(tmp_path, counting), with_step(1))
    assert counting.steps == ["mkdir", "fsync_dir", "create", "write", "fsync", "rename", "fsync_dir"]
    remove_checkpoint(bank)
    for die_at in range(len(counting.steps)):
        dying = DyingDisk(die_at)
        with pytest.raises(Killed):
            write_checkpoint(Bank.open(tmp_path, dying), with_step(1))
        if power == "goes":
            dying.lose_power(has_lost_names=True)
        found = read_checkpoint(bank)
        assert found is None or found.info.step == 1
        write_checkpoint(bank, with_step(2))
        dying = DyingDisk(die_at if die_at < 2 else die_at - 2)
        with pytest.raises(Killed):
            for step in (3, 4):
                write_checkpoint(Bank.open(tmp_path, dying), with_step(step))
        if power == "goes":
            dying.lose_power(has_lost_names=True)
        found = read_checkpoint(bank)
        assert found is not None and found.info.step in (2, 3)
        assert_same(found, with_step(found.info.step))
        remove_checkpoint(bank)
        assert not (tmp_path / ".learning").exists() and bank.verify() == []


@pytest.mark.parametrize("how", ["cut", "altered", "no JSON", "no metadata", "another version", "another key"])
def test_a_damaged_one_is_an_error_that_says_what_to_do(how: str, tmp_path: Path) -> None:
    bank = make_bank(tmp_path, tasks=())
    write_checkpoint(bank, with_step(1))
    file = tmp_path / CHECKPOINT
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    replaced = {
        "cut": data[: len(data) // 2],
        "altered": data[:8] + b"[" + data[9:],
        "no JSON": b"\x05" + b"\x00" * 7 + b"abcde",
        "no metadata": data[: 8 + length].replace(b"__metadata__", b"__metabata__") + data[8 + length :],
        "another version": data.replace(b'format_version\\":1', b'format_version\\":2'),
        "another key": data.replace(b'\\"task\\"', b'\\"tusk\\"'),
    }
    assert replaced[how] != data
    file.write_bytes(replaced[how])
    with pytest.raises(CheckpointError, match="damaged, or of another version.*--fresh"):
        read_checkpoint(bank)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", tasks=())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bank/.learning").symlink_to(tmp_path / "elsewhere")
    for step in (lambda: read_checkpoint(bank), lambda: write_checkpoint(bank, with_step(1))):
        with pytest.raises(Exception, match="symbolic link"):
            step()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_is_one_error_and_leaves_the_one_before(tmp_path: Path) -> None:
    class FullDisk(Disk):
        def write(self, descriptor: int, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    bank = make_bank(tmp_path, tasks=())
    write_checkpoint(bank, with_step(1))
    with pytest.raises(BankIOError, match=r"checkpoint.safetensors cannot be written \(No space left"):
        write_checkpoint(Bank.open(tmp_path, FullDisk()), with_step(2))
    assert_same(read_checkpoint(bank), with_step(1))
