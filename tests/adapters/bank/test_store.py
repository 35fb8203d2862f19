"""A bank's life without accidents."""

from pathlib import Path

import pytest
import torch

from adapters.bank import Bank, BankConflict, BankCorrupt, BankMismatch, BankNotFound, check_base

from .factory import BASE, empty_manifest, make_bank, make_gate, make_tensors, next_manifest


def test_published_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    bank = Bank.create(tmp_path / "bank")
    bank.publish(empty_manifest(bank))
    tensors = make_tensors(seed=7, dtype=torch.bfloat16)
    bank.publish(next_manifest(bank, bank.manifest(), "alpha", tensors))

    reopened = Bank.open(tmp_path / "bank")
    manifest = reopened.manifest()
    loaded = reopened.load_expert(manifest, "alpha.unique")
    assert manifest.generation == reopened.current() == 1
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in tensors
    )
    assert torch.equal(reopened.load_gate(manifest)["weight"], make_gate(1)["weight"])


def test_a_new_task_refers_to_older_experts_and_copies_none(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, tasks=["alpha", "beta"])
    older, newer = bank.manifest(1), bank.manifest(2)
    assert newer.experts[0] == older.experts[0]
    assert len(list((tmp_path / "objects/sha256").iterdir())) == 2 + 3  # two experts, three gates


def test_generations_and_current(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    assert bank.generations() == [0, 1, 2]
    bank.set_current(1)
    assert bank.current() == 1
    assert [task.name for task in bank.manifest().tasks] == ["alpha"]
    with pytest.raises(BankNotFound, match="00009.json"):
        bank.set_current(9)
    assert bank.current() == 1


def test_published_without_becoming_current(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, ["alpha"])
    bank.publish(next_manifest(bank, bank.manifest(), "beta"), make_current=False)
    assert (bank.generations(), bank.current()) == ([0, 1, 2], 1)


def test_current_points_only_to_what_a_restart_can_read(tmp_path: Path) -> None:
    """`point_to` trusts its caller for the bytes, not for what has happened to the bank since they were read."""
    bank = make_bank(tmp_path)
    held = bank.manifest(1)
    bank.point_to(held)
    assert bank.current() == 1
    with pytest.raises(BankConflict, match="other contents in the bank than in memory"):
        bank.point_to(bank.manifest(2).model_copy(update={"tasks": ()}))
    bank.set_current(2)
    (tmp_path / "objects/sha256" / f"{held.gate.object}.safetensors").unlink()
    with pytest.raises(BankNotFound, match=r"1 object\(s\) are gone"):
        bank.point_to(held)
    (tmp_path / "generations/00001.json").unlink()
    with pytest.raises(BankNotFound, match="00001.json does not exist"):
        bank.point_to(held)
    assert bank.current() == 2


def test_a_damaged_generation_does_not_keep_current_from_pointing_to_a_whole_one(tmp_path: Path) -> None:
    """The way back must be open, whatever is wrong with the newest."""
    bank = make_bank(tmp_path)
    held = bank.manifest(1)
    (tmp_path / "generations/00002.json").write_text("{")
    bank.point_to(held)
    assert bank.current() == 1


def test_learning_goes_on_from_an_older_generation_after_a_rollback(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    bank.set_current(1)
    bank.publish(next_manifest(bank, bank.manifest(), "gamma"))
    assert bank.current() == 3
    assert bank.manifest().parent == 1
    assert [task.name for task in bank.manifest().tasks] == ["alpha", "gamma"]


def test_create_refuses_what_is_there_and_open_refuses_what_is_not(tmp_path: Path) -> None:
    make_bank(tmp_path / "bank")
    with pytest.raises(BankConflict):
        Bank.create(tmp_path / "bank")
    with pytest.raises(BankNotFound, match="not a bank"):
        Bank.open(tmp_path / "elsewhere")
    Bank.create(tmp_path / "empty")
    Bank.create(tmp_path / "empty")  # a creation that was cut short is simply repeated
    with pytest.raises(BankNotFound, match="CURRENT"):
        Bank.open(tmp_path / "empty").manifest()


def test_publish_takes_the_next_number_only(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    first = next_manifest(bank, bank.manifest(), "gamma")
    second = next_manifest(bank, bank.manifest(), "delta")
    bank.publish(first)
    with pytest.raises(BankConflict, match="the next is 4"):
        bank.publish(second)
    with pytest.raises(BankConflict):
        bank.publish(second.model_copy(update={"generation": 5}))
    assert bank.manifest() == first


def test_publish_checks_parent_base_and_objects(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    manifest = next_manifest(bank, bank.manifest(), "gamma")
    other = BASE.model_copy(update={"weights_sha256": "cd" * 32})
    with pytest.raises(BankMismatch, match="one base model"):
        bank.publish(manifest.model_copy(update={"base": other}))
    with pytest.raises(BankCorrupt, match="block_size 3"):  # a copy is not validated by pydantic
        bank.publish(manifest.model_copy(update={"block_size": 3}))
    (tmp_path / "generations/00001.json").unlink()
    with pytest.raises(BankNotFound, match="00001.json"):
        bank.publish(manifest.model_copy(update={"parent": 1}))
    (tmp_path / f"objects/sha256/{manifest.experts[-1].object}.safetensors").unlink()
    with pytest.raises(BankNotFound, match=manifest.experts[-1].object):
        bank.publish(manifest)
    assert bank.current() == 2


def test_a_generation_is_served_by_its_own_base_only(tmp_path: Path) -> None:
    manifest = make_bank(tmp_path).manifest()
    check_base(manifest, BASE)
    with pytest.raises(BankMismatch, match="generation 2 was trained on base .*abababababab….*retrain, or start with"):
        check_base(manifest, BASE.model_copy(update={"weights_sha256": "cd" * 32}))
    with pytest.raises(BankMismatch, match="vocab_size 64.*vocab_size 65"):
        check_base(manifest, BASE.model_copy(update={"vocab_size": 65}))


def test_an_unknown_expert_is_named(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    with pytest.raises(BankNotFound, match="'nobody'.*alpha.unique, beta.unique"):
        bank.load_expert(bank.manifest(), "nobody")
