"""Whatever is wrong on disk is one typed error that names it, and never reaches a computation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.bank import (
    Bank,
    BankCorrupt,
    BankError,
    BankFormatTooNew,
    BankNotFound,
    BankPathEscape,
    BankTooLarge,
    Manifest,
    ObjectRef,
    check_finite,
)
from adapters.bank.manifest import MAX_MANIFEST_BYTES
from adapters.bank.objects import object_path, read_object

from .factory import make_bank, make_tensors, next_manifest

V1 = "layers.1.v_proj"


def expert_file(bank: Bank) -> Path:
    return bank.root / object_path(bank.manifest().experts[0].object)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def make_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


OBJECT_DAMAGE: dict[str, tuple[Callable[[Path], Any], type[BankError], str]] = {
    "missing": (lambda path: path.unlink(), BankNotFound, "does not exist; restore it"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        BankCorrupt,
        "safetensors has 695 bytes, expected 696",
    ),
    "longer": (
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        BankCorrupt,
        "safetensors has 697 bytes, expected 696",
    ),
    "flipped data bit": (lambda path: flip(path, -1), BankCorrupt, "its bytes were altered"),
    "flipped header bit": (lambda path: flip(path, 9), BankCorrupt, "its bytes were altered"),
    "symbolic link": (make_link, BankPathEscape, "is a symbolic link"),
    "directory": (make_directory, BankCorrupt, "not a regular file"),
}


@pytest.mark.parametrize("damage", OBJECT_DAMAGE)
def test_damaged_object(tmp_path: Path, damage: str) -> None:
    bank = make_bank(tmp_path)
    manifest = bank.manifest()
    inflict, error, message = OBJECT_DAMAGE[damage]
    inflict(expert_file(bank))
    with pytest.raises(error, match=message) as caught:
        bank.load_expert(manifest, "alpha.unique")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(error):
        bank.set_current(1)
    assert bank.load_expert(manifest, "beta.unique")
    [problem] = bank.verify()  # two generations share the expert: said once
    assert problem.startswith(f"generation 1: {error.__name__}: ")


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped data bit"])
def test_a_damaged_object_is_healed_by_writing_it_again(tmp_path: Path, damage: str) -> None:
    bank = make_bank(tmp_path, ["alpha"])
    OBJECT_DAMAGE[damage][0](expert_file(bank))
    bank.put_object(make_tensors(seed=1))
    assert bank.verify() == []


def test_linked_directory(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank")
    (bank.root / "objects/sha256").rename(tmp_path / "outside")
    (bank.root / "objects/sha256").symlink_to(tmp_path / "outside")
    with pytest.raises(BankPathEscape, match="sha256 is a symbolic link"):
        Bank.open(bank.root)
    with pytest.raises(BankPathEscape):
        bank.load_gate(bank.manifest(0))
    with pytest.raises(BankPathEscape):
        bank.put_object(make_tensors(seed=9))


@pytest.mark.parametrize(
    "digest", ["../../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a\0" * 32]
)
def test_digest_that_is_a_path(tmp_path: Path, digest: str) -> None:
    bank = make_bank(tmp_path)
    with pytest.raises(BankPathEscape, match="expected 64 lower-case hex"):
        read_object(bank.root, ObjectRef(digest, 100))
    forged = bank.manifest().model_dump(mode="json")
    forged["gate"]["object"] = digest
    with pytest.raises(BankCorrupt, match=r"gate\.object"):
        Manifest.from_bytes(json.dumps(forged).encode())


def without(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


def added(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: tensor})


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: [
        tensors.update({name.replace(old, new): tensors.pop(name)}) for name in list(tensors) if old in name
    ]


def shifted(rows: int, columns: int) -> Callable[[dict[str, Tensor]], Any]:
    return replaced(f"{V1}.blocks", lambda blocks: blocks + torch.tensor([rows, columns], dtype=torch.int32))


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_put((torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.tensor(value))


EXPERT_DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no blocks": (without(f"{V1}.blocks"), "lacks blocks"),
    "no A": (without(f"{V1}.A"), "lacks A"),
    "no B": (without(f"{V1}.B"), "lacks B"),
    "unknown tensor": (added("bias", torch.zeros(1)), "unexpected tensor 'bias'"),
    "unknown part": (added(f"{V1}.C", torch.zeros(1)), "unexpected tensor"),
    "padded layer": (renamed("layers.1.", "layers.01."), "unexpected tensor"),
    "trunk layer": (renamed("layers.1.", "layers.0."), "outside layers 1 to 3"),
    "layer past the end": (renamed("layers.3.", "layers.4."), "outside layers 1 to 3"),
    "other target": (renamed("v_proj", "k_proj"), "not one of v_proj"),
    "one group too many": (lambda tensors: tensors.update(make_tensors({(2, "v_proj"): [(0, 0)]})), "holds 4 blocks"),
    "NaN": (replaced(f"{V1}.A", with_value(float("nan"))), r"layers\.1\.v_proj\.A holds NaN"),
    "infinity": (replaced(f"{V1}.B", with_value(float("-inf"))), r"layers\.1\.v_proj\.B holds NaN or inf"),
    "A of another rank": (
        replaced(f"{V1}.A", lambda a: a[:, :1]),
        r"A is torch.float32 \[2, 1, 4\], expected .*2, 2, 4",
    ),
    "B transposed": (replaced(f"{V1}.B", lambda b: b.mT), r"B is torch.float32 \[2, 2, 4\], expected .*\[2, 4, 2\]"),
    "A for fewer blocks": (replaced(f"{V1}.A", lambda a: a[:1]), r"A is torch.float32 \[1, 2, 4\]"),
    "A double": (replaced(f"{V1}.A", lambda a: a.double()), "A is torch.float64"),
    "A and B of two types": (replaced(f"{V1}.B", lambda b: b.bfloat16()), "B is torch.bfloat16"),
    "blocks int64": (replaced(f"{V1}.blocks", lambda blocks: blocks.long()), "blocks is torch.int64"),
    "blocks flat": (replaced(f"{V1}.blocks", lambda blocks: blocks.flatten()), r"blocks is torch.int32 \[4\]"),
    "blocks in threes": (replaced(f"{V1}.blocks", lambda blocks: blocks.repeat(1, 2)[:, :3]), "expected int32"),
    "blocks empty": (replaced(f"{V1}.blocks", lambda blocks: blocks[:0]), "with n > 0"),
    "blocks unsorted": (replaced(f"{V1}.blocks", lambda blocks: blocks.flip(0)), "not sorted"),
    "block twice": (replaced(f"{V1}.blocks", lambda blocks: blocks[[0, 0]]), "without duplicates"),
    "row outside": (shifted(1, 0), "leaves the 2 x 4 grid"),
    "column outside": (shifted(0, 1), "leaves the 2 x 4 grid"),
    "row negative": (shifted(-1, 0), "leaves the 2 x 4 grid"),
    "column negative": (
        shifted(0, -1),
        "leaves the 2 x 4 grid",
    ),
}


@pytest.mark.parametrize("damage", EXPERT_DAMAGE)
def test_expert_with_the_right_digest_but_bad_tensors(tmp_path: Path, damage: str) -> None:
    """The bytes are what the manifest says; the tensors are not an expert. Nobody may publish or load it."""
    bank = make_bank(tmp_path, ["alpha"])
    tensors = make_tensors(seed=5)
    good = next_manifest(bank, bank.manifest(), "beta", tensors)
    inflict, message = EXPERT_DAMAGE[damage]
    inflict(tensors)
    expert = good.experts[-1].model_copy(update=bank.put_object(tensors)._asdict())
    bad = good.model_copy(update={"experts": (*good.experts[:-1], expert)})
    with pytest.raises(BankCorrupt, match=message):
        bank.publish(bad)
    assert bank.generations() == [0, 1]
    with pytest.raises(BankCorrupt, match=message):
        bank.load_expert(bad, "beta.unique")
    bank.publish(good)


def test_gate_that_is_not_finite(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, ["alpha"])
    good = next_manifest(bank, bank.manifest(), "beta")
    ref = bank.put_object({"weight": torch.tensor([1.0, float("nan")])})
    with pytest.raises(BankCorrupt, match="gate of generation 2: weight holds NaN"):
        bank.publish(good.model_copy(update={"gate": good.gate.model_copy(update=ref._asdict())}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_finite_is_what_torch_says(dtype: torch.dtype) -> None:
    limits, tiny = torch.finfo(dtype), torch.tensor([0.0, -0.0, 1e-40], dtype=dtype)
    check_finite({"a": torch.tensor([limits.max, limits.min, limits.tiny], dtype=dtype), "b": tiny}, "expert")
    check_finite({"empty": torch.zeros(0, dtype=dtype), "scalar": torch.tensor(1.0, dtype=dtype)}, "expert")
    for value in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        with pytest.raises(BankCorrupt, match="^expert: a holds NaN or infinity"):
            check_finite({"a": torch.tensor([1.0, value], dtype=dtype)}, "expert")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MANIFEST_DAMAGE: dict[str, tuple[Callable[[Path], Any], type[BankError], str]] = {
    "missing": (lambda path: path.unlink(), BankNotFound, "00002.json does not exist"),
    "empty": (lambda path: path.write_text(""), BankCorrupt, "is not JSON"),
    "not an object": (lambda path: path.write_text("[1]"), BankCorrupt, "format_version is None"),
    "nested too deep": (lambda path: path.write_text("[" * 100_000), BankCorrupt, "is not JSON"),
    "not a version": (
        lambda path: edit(path, lambda m: m.update(format_version=True)),
        BankCorrupt,
        "is True, expected 1",
    ),
    "newer, with unknown keys": (
        lambda path: edit(path, lambda m: m.update(format_version=4, surprise=[])),
        BankFormatTooNew,
        "format_version 4, this software reads up to 3; upgrade",
    ),
    "unknown key": (lambda path: edit(path, lambda m: m.update(surprise=1)), BankCorrupt, "surprise: Extra inputs"),
    "unknown inner key": (lambda path: edit(path, lambda m: m["gate"].update(x=1)), BankCorrupt, r"gate\.x: Extra"),
    "key missing": (lambda path: edit(path, lambda m: m.pop("gate")), BankCorrupt, "gate: Field required"),
    "number as text": (lambda path: edit(path, lambda m: m.update(block_size="4")), BankCorrupt, "block_size"),
    "another number": (
        lambda path: edit(path, lambda m: m.update(generation=3)),
        BankCorrupt,
        "says it is generation 3",
    ),
    "oversized": (lambda path: path.write_text(" " * (MAX_MANIFEST_BYTES + 1)), BankTooLarge, "at most"),
    "symbolic link": (make_link, BankPathEscape, "00002.json is a symbolic link"),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE)
def test_damaged_manifest(tmp_path: Path, damage: str) -> None:
    bank = make_bank(tmp_path)
    inflict, error, message = MANIFEST_DAMAGE[damage]
    inflict(tmp_path / "generations/00002.json")
    with pytest.raises(error, match=message) as caught:
        bank.manifest()
    assert str(tmp_path) not in str(caught.value)
    assert bank.manifest(1).generation == 1
    assert len(bank.verify()) == 1
    with pytest.raises(error):
        bank.gc(keep=[1], grace_seconds=0)  # it cannot know what generation 2 needs
    assert bank.load_expert(bank.manifest(1), "alpha.unique")


@pytest.mark.parametrize("content", [b"", b"2", b"02\n", b"-1\n", b"2\n\n", b"two\n", b"9" * 15 + b"\n"])
def test_damaged_current(tmp_path: Path, content: bytes) -> None:
    bank = make_bank(tmp_path)
    (tmp_path / "CURRENT").write_bytes(content)
    with pytest.raises(BankCorrupt, match="expected a number and a newline"):
        bank.current()
    assert len(bank.verify()) == 1
    bank.set_current(2)
    assert bank.verify() == []


def test_current_that_points_nowhere(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    (tmp_path / "CURRENT").write_text("7\n")
    assert bank.verify() == ["CURRENT says 7, which does not exist; choose a generation (use N)"]
