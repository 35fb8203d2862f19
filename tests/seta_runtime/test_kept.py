"""Generations share the experts they have in common: each is unpacked once, and goes with the last that has it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from adapters.bank import Bank, BankCorrupt, BankNotFound, ExpertInfo, Manifest
from seta_runtime.bench.many_tasks import BASE, TRUNK, bank_of
from seta_runtime.kept import KeptExperts
from seta_runtime.ops.paired import PairedExperts, product
from seta_runtime.ops.task_rows import TaskRows
from seta_runtime.resident import Layout, ResidentGeneration
from tests.adapters.bank.factory import write_manifest
from tests.seta_runtime.random_experts import CPU

pytestmark = pytest.mark.skipif(product() is None, reason="the processor or the compiler is missing")


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """Generation 1 has two tasks, generation 2 one more."""
    return bank_of(tmp_path / "bank", 3)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The experts that were unpacked, in turn."""
    ids, original = list[str](), Bank.load_expert

    def counting(self: Bank, manifest: Manifest, expert: ExpertInfo) -> dict[str, torch.Tensor]:
        ids.append(expert.id)
        return original(self, manifest, expert)

    monkeypatch.setattr(Bank, "load_expert", counting)
    return ids


def load(bank: Bank, generation: int, known: KeptExperts, dtype: torch.dtype = torch.bfloat16) -> ResidentGeneration:
    layout = Layout(TRUNK, ("v_proj",))
    return ResidentGeneration.load(generation, bank.root, generation, None, BASE, layout, dtype, CPU, known=known)


def answers(loaded: ResidentGeneration, task: int) -> torch.Tensor:
    """The update of one token of a task, on every projection."""
    found = []
    for (_, target), experts in sorted(loaded.projections.items()):
        assert isinstance(experts, PairedExperts)
        d_out, d_in = BASE.target_dims(target)
        x = torch.randn(1, d_in, generator=torch.Generator().manual_seed(0)).bfloat16()
        y = torch.zeros(1, d_out, dtype=torch.bfloat16)
        experts.add(y, x, TaskRows.of([(task, None)], 1))
        found.append(y)
    return torch.cat(found)


def test_only_a_new_expert_is_unpacked_and_answers_are_those_of_a_fresh_load(bank: Bank, read: list[str]) -> None:
    known = KeptExperts()
    older = load(bank, 1, known)
    assert read == ["task0000.unique", "task0001.unique"]
    newer = load(bank, 2, known)
    assert read[2:] == ["task0002.unique"] and len(known) == 3
    fresh = load(bank, 2, KeptExperts())
    for task in range(3):
        assert torch.equal(answers(newer, task), answers(fresh, task)) and answers(newer, task).any()
    assert torch.equal(answers(older, 1), answers(newer, 1))


def test_what_they_have_in_common_is_in_memory_once(bank: Bank) -> None:
    known = KeptExperts()
    older, newer = load(bank, 1, known), load(bank, 2, known)
    for mine, theirs in zip(older.kept, newer.kept, strict=False):
        assert mine is theirs
    places = [{one.a.data_ptr() for one in g.projections[TRUNK, "v_proj"].stacks[0].experts} for g in (older, newer)]  # type: ignore[union-attr, union-attr]
    assert places[0] < places[1]


def test_an_expert_goes_with_the_last_generation_that_has_it(bank: Bank, read: list[str]) -> None:
    known = KeptExperts()
    older, newer = load(bank, 1, known), load(bank, 2, known)
    del older
    gc.collect()
    assert len(known) == 3
    del newer
    gc.collect()
    assert len(known) == 0
    load(bank, 1, known)
    assert read[3:] == ["task0000.unique", "task0001.unique"]


def test_the_newer_one_serves_on_when_the_older_one_goes(bank: Bank) -> None:
    known = KeptExperts()
    older, newer = load(bank, 1, known), load(bank, 2, known)
    before = answers(newer, 0)
    del older
    gc.collect()
    churn = [torch.randn(1 << 16) for _ in range(50)]  # whatever was given back is written over
    assert torch.equal(answers(newer, 0), before) and churn


@pytest.mark.parametrize("damage", ["gone", "altered", "cut"])
def test_a_damaged_file_is_an_error_although_the_expert_is_in_memory(bank: Bank, damage: str) -> None:
    """The next start could not read it."""
    known = KeptExperts()
    older = load(bank, 1, known)
    path = next(bank.root.glob(f"objects/sha256/{bank.manifest(1).experts[0].object}*"))
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if damage == "altered" else b""))
    with pytest.raises(BankNotFound if damage == "gone" else BankCorrupt):
        load(bank, 2, known)
    assert answers(older, 0).any()
    path.write_bytes(data)
    assert load(bank, 2, known).kept[0] is older.kept[0]


def test_another_description_of_a_known_object_is_compared_with_its_bytes(bank: Bank) -> None:
    known = KeptExperts()
    older, manifest = load(bank, 1, known), bank.manifest(2)
    experts = (manifest.experts[0].model_copy(update={"rank": 16}), *manifest.experts[1:])
    write_manifest(bank, manifest.model_copy(update={"experts": experts}))
    with pytest.raises(BankCorrupt, match=r"task0000\.unique"):
        load(bank, 2, known)
    assert older.tasks == ("task0000", "task0001")


def test_forms_that_are_made_of_all_experts_together_keep_none(bank: Bank, read: list[str]) -> None:
    """Torch's: the bank's values would be in memory twice."""
    known = KeptExperts()
    older = load(bank, 1, known, torch.float32)
    gc.collect()
    assert older.kept == () and len(known) == 0
    load(bank, 2, known, torch.float32)
    assert len(read) == 5
