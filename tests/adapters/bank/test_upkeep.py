"""Garbage collection deletes what nothing needs, and only that."""

from pathlib import Path

import pytest

from adapters.bank import Bank, BankNotFound

from .factory import make_bank, make_tensors, next_manifest


def names(bank: Bank) -> set[str]:
    return {path.name.partition(".")[0] for path in (bank.root / "objects/sha256").iterdir()}


def test_unneeded_objects_and_temporary_files_go(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    needed = names(bank)
    orphan = bank.put_object(make_tensors(seed=99))
    for directory in (".", "generations", "objects/sha256"):
        (tmp_path / directory / ".tmp-x").write_bytes(b"12345")
    for stranger in ("README", "mine.safetensors"):
        (tmp_path / "objects/sha256" / stranger).write_text("not ours")
    collected = bank.gc(grace_seconds=0)
    assert collected == ([], 4, 15 + orphan.object_bytes)
    assert names(bank) == needed | {"README", "mine"}
    assert bank.verify() == []
    assert bank.gc(grace_seconds=0) == ([], 0, 0)


def test_objects_about_to_be_published_are_spared(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    manifest = next_manifest(bank, bank.manifest(), "gamma")
    assert bank.gc() == ([], 0, 0)
    bank.publish(manifest)


def test_generations_outside_keep_go_with_their_objects(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, ["alpha", "beta", "gamma"])
    bank.set_current(1)
    assert bank.gc(keep=[], grace_seconds=0).generations == [0, 2]  # CURRENT and the newest stay
    assert bank.generations() == [1, 3]
    assert bank.verify() == []
    assert len(names(bank)) == 3 + 2  # experts of 1 and 3, their gates
    with pytest.raises(BankNotFound, match=r"\[0\] do not exist"):
        bank.gc(keep=[0])
    bank.publish(next_manifest(bank, bank.manifest(), "delta"))
    assert bank.generations() == [1, 3, 4]


def test_an_empty_bank(tmp_path: Path) -> None:
    bank = Bank.create(tmp_path / "bank")
    bank.put_object(make_tensors())
    assert bank.verify() == []
    assert bank.gc(grace_seconds=0).num_files == 1
