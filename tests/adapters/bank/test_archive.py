"""Archives: what comes out is what went in, and nothing else ever comes in."""

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.bank import (
    Bank,
    BankConflict,
    BankCorrupt,
    BankError,
    BankFormatTooNew,
    BankMismatch,
    BankNotFound,
    BankPathEscape,
    BankTooLarge,
    ObjectRef,
)
from adapters.bank.archive import packed_bytes

from .factory import BASE, make_bank

Members = list[tuple[tarfile.TarInfo, bytes]]


def export(tmp_path: Path) -> tuple[Bank, Path]:
    bank = make_bank(tmp_path / "source")
    bank.export(None, tmp_path / "archive.tar")
    return bank, tmp_path / "archive.tar"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_into_a_new_bank(tmp_path: Path) -> None:
    source, archive = export(tmp_path)
    bank = Bank.create(tmp_path / "target")
    assert bank.import_(archive) == source.manifest()
    assert bank.generations() == [2]  # its own number, without its history
    assert bank.current() == 2
    assert bank.verify() == []
    assert contents(bank.root).items() <= contents(source.root).items()


def test_into_a_bank_with_an_older_generation(tmp_path: Path) -> None:
    _, archive = export(tmp_path)
    bank = make_bank(tmp_path / "target", ["alpha"])
    bank.import_(archive)
    assert bank.generations() == [0, 1, 2]
    assert bank.current() == 1  # going live is a separate decision
    bank.set_current(2)
    assert bank.verify() == []


def test_again_changes_nothing_but_heals(tmp_path: Path) -> None:
    bank, archive = export(tmp_path)
    before = contents(bank.root)
    bank.import_(archive)
    assert contents(bank.root) == before
    path = bank.root / "objects/sha256" / f"{bank.manifest().experts[0].object}.safetensors"
    path.write_bytes(b"damaged")
    bank.import_(archive)
    assert contents(bank.root) == before


def export_some(bank: Bank, path: Path, refs: list[ObjectRef]) -> Path:
    """An archive that holds only these objects."""
    manifest = bank.manifest()
    data = b"".join(bank.export_chunks(manifest, refs))
    assert len(data) == packed_bytes(manifest, refs)
    path.write_bytes(data)
    return path


def test_only_what_is_missing(tmp_path: Path) -> None:
    source = make_bank(tmp_path / "source")
    bank = make_bank(tmp_path / "target", ["alpha"])
    missing = bank.missing_objects(source.manifest())
    shared = source.manifest().expert("alpha.unique").ref
    assert set(missing) == set(source.manifest().refs) - {shared}
    bank.import_(export_some(source, tmp_path / "part.tar", missing))
    assert bank.verify() == []
    assert bank.manifest(2) == source.manifest()
    assert bank.missing_objects(source.manifest()) == []


def test_what_an_archive_leaves_out_is_verified_too(tmp_path: Path) -> None:
    source = make_bank(tmp_path / "source")
    bank = make_bank(tmp_path / "target", ["alpha"])
    archive = export_some(source, tmp_path / "part.tar", bank.missing_objects(source.manifest()))
    path = bank.root / "objects/sha256" / f"{source.manifest().expert('alpha.unique').object}.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
    before = contents(bank.root)
    with pytest.raises(BankCorrupt, match="its bytes were altered"):
        bank.import_(archive)
    path.unlink()
    with pytest.raises(BankCorrupt, match=r"lacks 1 object\(s\)"):
        bank.import_(archive)
    assert contents(bank.root).items() < before.items()
    assert bank.generations() == [0, 1]


def test_missing_objects_are_listed_only_for_what_may_enter(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "target")
    with pytest.raises(BankConflict, match="generation 2 exists with other contents"):
        bank.missing_objects(make_bank(tmp_path / "other", ["alpha", "gamma"]).manifest())
    base = BASE.model_copy(update={"weights_sha256": "cd" * 32})
    with pytest.raises(BankMismatch, match="one base model"):
        bank.missing_objects(make_bank(tmp_path / "base", [], base=base).manifest())


def test_archives_are_reproducible_and_ordinary_tar_files(tmp_path: Path) -> None:
    bank, archive = export(tmp_path)
    bank.export(2, tmp_path / "again.tar")
    assert archive.read_bytes() == (tmp_path / "again.tar").read_bytes()
    with tarfile.open(archive) as tar:
        assert tar.getnames()[0] == "manifest.json"
        assert len(tar.getnames()) == 1 + 3


def test_conflicts(tmp_path: Path) -> None:
    bank, archive = export(tmp_path)
    with pytest.raises(BankConflict, match="archive.tar exists"):
        bank.export(None, archive)
    with pytest.raises(BankConflict, match="generation 2 exists with other contents"):
        make_bank(tmp_path / "other", ["alpha", "gamma"]).import_(archive)
    with pytest.raises(BankMismatch, match="one base model"):
        base = BASE.model_copy(update={"weights_sha256": "cd" * 32})
        make_bank(tmp_path / "base", [], base=base).import_(archive)
    with pytest.raises(BankNotFound, match="archive nowhere.tar does not exist"):
        bank.import_(tmp_path / "nowhere.tar")
    with pytest.raises(BankCorrupt, match="not a regular file"):
        bank.import_(tmp_path)


def test_a_damaged_generation_is_not_exported(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "source")
    path = bank.root / "objects/sha256" / f"{bank.manifest().experts[0].object}.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(BankCorrupt):
        bank.export(None, tmp_path / "archive.tar")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def replace(members: Members, index: int, data: bytes) -> Members:
    return [*members[:index], member(members[index][0].name, data), *members[index + 1 :]]


EVIL: dict[str, tuple[Callable[[Members], Members], type[BankError], str]] = {
    "name with ..": (lambda ms: [*ms, member("../evil")], BankPathEscape, "leads out"),
    "inner ..": (lambda ms: [*ms, member("objects/../../evil")], BankPathEscape, "leads out"),
    "absolute name": (lambda ms: [*ms, member("/evil")], BankPathEscape, "leads out"),
    "symbolic link": (
        lambda ms: [member(ms[0][0].name, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), *ms[1:]],
        BankPathEscape,
        "is a link",
    ),
    "hard link": (
        lambda ms: [*ms[:2], member(ms[2][0].name, b"", type=tarfile.LNKTYPE, linkname=ms[1][0].name), *ms[3:]],
        BankPathEscape,
        "is a link",
    ),
    "directory": (lambda ms: [*ms, member("objects", b"", type=tarfile.DIRTYPE)], BankCorrupt, "not a plain file"),
    "fifo": (lambda ms: [*ms, member("objects/x", b"", type=tarfile.FIFOTYPE)], BankCorrupt, "not a plain file"),
    "device": (lambda ms: [*ms, member("objects/x", b"", type=tarfile.CHRTYPE)], BankCorrupt, "not a plain file"),
    "extended header": (
        lambda ms: [member("pax", b"9 a=bcde\n", type=tarfile.XHDTYPE), *ms],
        BankCorrupt,
        "not a plain",
    ),
    "long-name header": (
        lambda ms: [member("gnu", b"abc", type=tarfile.GNUTYPE_LONGNAME), *ms],
        BankCorrupt,
        "not a plain",
    ),
    "unknown file": (lambda ms: [*ms, member("generations/00009.json")], BankCorrupt, "not in its manifest"),
    "unnamed object": (
        lambda ms: [*ms, member(f"objects/sha256/{'a' * 64}.safetensors")],
        BankCorrupt,
        "not in its manifest",
    ),
    "object twice": (lambda ms: [*ms, ms[1]], BankCorrupt, "twice"),
    "object missing": (lambda ms: ms[:-1], BankCorrupt, r"lacks 1 object\(s\), first objects/sha256/"),
    "manifest missing": (lambda ms: ms[1:], BankCorrupt, "expected manifest.json"),
    "manifest last": (lambda ms: [*ms[1:], ms[0]], BankCorrupt, "expected manifest.json"),
    "empty": (lambda ms: [], BankCorrupt, "expected manifest.json"),
    "object longer": (
        lambda ms: replace(ms, 1, ms[1][1] + b"x"),
        BankCorrupt,
        r"the archive's objects/\S+ has \d+ bytes, expected",
    ),
    "object altered": (lambda ms: replace(ms, 1, ms[1][1][:-1] + b"x"), BankCorrupt, "its bytes were altered"),
    "manifest too large": (lambda ms: replace(ms, 0, b" " * ((32 << 20) + 1)), BankTooLarge, "manifest has 33554433"),
    "manifest not JSON": (lambda ms: replace(ms, 0, b"{"), BankCorrupt, "is not JSON"),
    "manifest newer": (lambda ms: replace(ms, 0, b'{"format_version": 9}'), BankFormatTooNew, "format_version 9"),
    "manifest asks for too much": (
        lambda ms: replace(ms, 0, ms[0][1].replace(b'"object_bytes": 696', b'"object_bytes": 4294967297')),
        BankCorrupt,
        "object_bytes",
    ),
    "manifest for other tensors": (
        lambda ms: replace(ms, 0, ms[0][1].replace(b'"num_blocks": 3', b'"num_blocks": 4')),
        BankCorrupt,
        "holds 3 blocks, the manifest says 4",
    ),
}


@pytest.mark.parametrize("case", EVIL)
def test_evil_archive(tmp_path: Path, case: str) -> None:
    _, archive = export(tmp_path)
    with tarfile.open(archive) as tar:
        members: Members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    change, error, message = EVIL[case]
    with tarfile.open(tmp_path / "evil.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in change(members):
            tar.addfile(info, io.BytesIO(data))
    bank = make_bank(tmp_path / "target", ["alpha"])
    before = contents(tmp_path)
    with pytest.raises(error, match=message) as caught:
        bank.import_(tmp_path / "evil.tar")
    assert contents(tmp_path) == before
    assert str(tmp_path) not in str(caught.value)


def test_compressed_archives_are_not_read(tmp_path: Path) -> None:
    _, archive = export(tmp_path)
    with tarfile.open(tmp_path / "small.tar.gz", "w:gz") as tar:
        tar.add(archive, "manifest.json")
    with pytest.raises(BankCorrupt, match="not a tar file"):
        Bank.create(tmp_path / "target").import_(tmp_path / "small.tar.gz")


def test_the_total_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, archive = export(tmp_path)
    monkeypatch.setattr("adapters.bank.archive.MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(BankTooLarge, match="an archive at most 1000"):
        bank.import_(archive)
    with pytest.raises(BankTooLarge, match="an archive at most 1000"):
        bank.export(None, tmp_path / "other.tar")
    assert not (tmp_path / "other.tar").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bank, Path]:
    return export(tmp_path_factory.mktemp("exported"))


@settings(deadline=None, max_examples=60)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_found(exported: tuple[Bank, Path], cut: float) -> None:
    bank, archive = exported
    data = archive.read_bytes()[:-1024]  # without the end mark: what a full disk leaves
    short = archive.with_name("short.tar")
    short.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(BankCorrupt):
        bank.import_(short)


@settings(deadline=None, max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_harmless(exported: tuple[Bank, Path], position: float, bit: int) -> None:
    bank, archive = exported
    data = bytearray(archive.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    flipped = archive.with_name("flipped.tar")
    flipped.write_bytes(data)
    before = contents(bank.root)
    with contextlib.suppress(BankError):
        bank.import_(flipped)
    assert contents(bank.root) == before
