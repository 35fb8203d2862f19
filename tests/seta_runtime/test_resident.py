"""Loading a generation: everything is verified before anything is kept, and each refusal says what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.bank import Bank, BankConflict, BankCorrupt, BankError, BankMismatch, BankNotFound, Manifest
from adapters.gate import AnalyticGate
from seta_runtime.ops.cpu import add_routed
from seta_runtime.resident import AdapterPath, Layout, ResidentGeneration
from tests.adapters.bank.factory import (
    BASE,
    TRUNK_LAYERS,
    empty_manifest,
    expert_info,
    make_tensors,
    next_manifest,
    write_manifest,
)
from tests.seta_runtime.random_experts import CPU, random_gate

LAYOUT = Layout(TRUNK_LAYERS, ("v_proj",))
WIDTH = 8


def make_bank(path: Path) -> Bank:
    """Generations 0 to 2 with gates that the runtime can read."""
    bank = Bank.create(path)
    bank.publish(with_gate(bank, empty_manifest(bank)))
    for task in ("alpha", "beta"):
        bank.publish(with_gate(bank, next_manifest(bank, bank.manifest(), task)))
    return bank


def with_gate(bank: Bank, manifest: Manifest, **changes: Tensor) -> Manifest:
    gate = random_gate(BASE.hidden_size, WIDTH, len(manifest.tasks))
    ref = bank.put_object({**gate.tensors(), **changes})
    return manifest.model_copy(update={"gate": manifest.gate.model_copy(update=ref._asdict())})


def load(bank: Bank, generation: int, **changes: object) -> ResidentGeneration:
    arguments = {"digest": None, "found": BASE, "layout": LAYOUT, "dtype": torch.float32, "device": CPU}
    return ResidentGeneration.load(7, bank.root, generation, **{**arguments, **changes})  # type: ignore[arg-type]


def object_file(bank: Bank, digest: str) -> Path:
    return next(bank.root.glob(f"objects/sha256/{digest}*"))


def test_a_whole_generation(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank")
    loaded = load(bank, 2)
    assert (loaded.id, loaded.generation, loaded.tasks) == (7, 2, ("alpha", "beta"))
    assert loaded.experts_of_task == [["alpha.unique"], ["beta.unique"]]
    assert set(loaded.projections) == {(1, "v_proj"), (3, "v_proj")}
    packed = loaded.projections[1, "v_proj"]
    tensors = make_tensors(seed=1)
    expected = torch.zeros(BASE.target_dims("v_proj"))
    for (row, column), a, b in zip(*(tensors[f"layers.1.v_proj.{p}"] for p in ("blocks", "A", "B")), strict=True):
        expected[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = b @ a
    x, y = torch.randn(3, expected.shape[1]), torch.zeros(3, expected.shape[0])
    add_routed(y, x, packed, None, 0, None)
    torch.testing.assert_close(y, x @ expected.T)
    assert loaded.nbytes > sum(p.nbytes for p in loaded.projections.values())


def test_nothing_is_read_again(tmp_path: Path) -> None:
    """The bank may be moved away under a running engine."""
    bank = make_bank(tmp_path / "bank")
    loaded = load(bank, 1)
    bank.root.rename(tmp_path / "elsewhere")
    assert loaded.gate.decide(torch.randn(3, WIDTH)).shape == (3, 1)


def test_generation_0_knows_no_task(tmp_path: Path) -> None:
    loaded = load(make_bank(tmp_path / "bank"), 0)
    assert loaded.tasks == () and loaded.projections == {}


@pytest.mark.parametrize("change", [{"weights_sha256": "cd" * 32}, {"vocab_size": 65}])
def test_another_base_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(BankMismatch, match="generation 1 was trained on base .* the engine serves"):
        load(make_bank(tmp_path / "bank"), 1, found=BASE.model_copy(update=change))


@pytest.mark.parametrize("layout", [Layout(2, ("v_proj",)), Layout(TRUNK_LAYERS, ("q_proj",))])
def test_another_layout_is_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(BankMismatch, match="generation 1 has trunk_layers 1 .* started for .* restart"):
        load(make_bank(tmp_path / "bank"), 1, layout=layout)


def test_fewer_targets_than_the_engine_wraps_are_fine(tmp_path: Path) -> None:
    assert load(make_bank(tmp_path / "bank"), 1, layout=Layout(TRUNK_LAYERS, ("q_proj", "v_proj"))).tasks == ("alpha",)


@pytest.mark.parametrize("what", ["expert", "gate"])
def test_a_missing_object_is_refused(tmp_path: Path, what: str) -> None:
    bank = make_bank(tmp_path / "bank")
    manifest = bank.manifest(1)
    digest = manifest.experts[0].object if what == "expert" else manifest.gate.object
    object_file(bank, digest).unlink()
    with pytest.raises(BankNotFound):
        load(bank, 1)


@pytest.mark.parametrize("what", ["expert", "gate"])
def test_damaged_and_truncated_objects_are_refused(tmp_path: Path, what: str) -> None:
    bank = make_bank(tmp_path / "bank")
    manifest = bank.manifest(1)
    file = object_file(bank, manifest.experts[0].object if what == "expert" else manifest.gate.object)
    data = file.read_bytes()
    for broken in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        file.chmod(0o644)
        file.write_bytes(broken)
        with pytest.raises(BankCorrupt):
            load(bank, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_experts_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """`publish` refuses them as well, so the manifest is written past it."""
    bank = make_bank(tmp_path / "bank")
    tensors = make_tensors()
    tensors["layers.1.v_proj.A"][0, 0, 0] = value
    old = bank.manifest(1)
    expert = expert_info("alpha.unique", ["alpha"], tensors, bank.put_object(tensors))
    write_manifest(bank, old.model_copy(update={"experts": (expert,)}))
    with pytest.raises(BankCorrupt, match="layers.1.v_proj.A holds NaN or infinity"):
        load(bank, 1)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mean", torch.full((1, WIDTH), float("nan")), "NaN"),
        ("mean", torch.zeros(2, WIDTH), r"expected float32 \[1, 8\]"),
        ("keep", torch.ones(1, dtype=torch.float64), "expected float32"),
        ("surprise", torch.zeros(1), "has tensors"),
    ],
)
def test_a_gate_that_is_not_the_formats_is_refused(tmp_path: Path, name: str, tensor: Tensor, message: str) -> None:
    bank = make_bank(tmp_path / "bank")
    write_manifest(bank, with_gate(bank, bank.manifest(1), **{name: tensor}))
    with pytest.raises(BankCorrupt, match=message):
        load(bank, 1)


def test_a_gate_wider_than_the_pooling_layer_is_refused(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank")
    wide = random_gate(BASE.hidden_size, BASE.num_kv_heads * BASE.head_size + 1, 1)
    write_manifest(bank, with_gate(bank, bank.manifest(1), **wide.tensors()))
    with pytest.raises(BankCorrupt, match="KV cache holds 8"):
        load(bank, 1)


@pytest.mark.parametrize(
    "path",
    [
        "bank/generations",
        "bank/generations/CURRENT",
        "bank/generations/4.json",
        "bank/generations/00004.json.tmp",
        "bank/generations/00004.safetensors",
        "bank/generations/0000².json",
        "bank/generations/-0004.json",
        "bank/objects/00004.json",
        "bank/generations/../../etc/00004.json",
        "bank/generations/00004.json/..",
        "bank/generations/00004.json#",
        "bank/generations/00004.json#abcd",
        "/etc/passwd",
        "",
    ],
)
def test_paths_that_name_no_manifest_are_refused(path: str) -> None:
    with pytest.raises(BankCorrupt, match="is no generation's manifest"):
        AdapterPath.parse(path)


def test_a_path_names_bank_generation_and_contents(tmp_path: Path) -> None:
    path = AdapterPath(tmp_path / "bank", 4, "ab" * 32)
    assert AdapterPath.parse(str(path)) == path
    assert AdapterPath.parse(str(tmp_path / "x/../bank/generations/00004.json")) == AdapterPath(
        tmp_path / "bank", 4, None
    )


def test_other_contents_than_the_caller_has_read_are_refused(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank")
    assert load(bank, 1, digest=bank.manifest(1).digest).generation == 1
    with pytest.raises(BankConflict, match="other contents than a moment ago"):
        load(bank, 1, digest=bank.manifest(2).digest)


def test_links_out_of_the_bank_are_refused(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank")
    manifest = bank.root / "generations/00001.json"
    manifest.rename(tmp_path / "outside.json")
    manifest.symlink_to(tmp_path / "outside.json")
    with pytest.raises(BankError):
        load(bank, 1)


def test_an_empty_generation_is_base_alone() -> None:
    gate: AnalyticGate = random_gate(BASE.hidden_size, WIDTH, 0)
    empty = ResidentGeneration.empty(3, gate)
    assert empty.tasks == () and empty.projections == {} and empty.id == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        empty.id = 4  # type: ignore[misc]
