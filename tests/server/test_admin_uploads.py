"""Generations that are sent to the admin API: what enters the bank, and what leaves it as it was."""

import asyncio
import errno
import shutil
from typing import Any

import httpx
import pytest

from adapters.bank import Bank, Manifest
from adapters.bank.archive import packed_bytes
from tests.adapters.bank.factory import BASE, make_bank, next_manifest
from tests.server.admin_app import Admin, code_of
from tests.server.house import MAX_UPLOAD_BYTES


def new_generation(admin: Admin, source: Bank) -> Manifest:
    """The bank's next generation, in another bank that has all of it."""
    source.publish(next_manifest(source, source.manifest(5), "zeta"))
    assert source.manifest().generation == 6
    return source.manifest()


@pytest.fixture
def source(admin: Admin, tmp_path: Any) -> Bank:
    """A copy of the bank on the trainer's machine, one generation ahead."""
    copy = Bank.open(shutil.copytree(admin.house.bank.root, tmp_path / "source"))
    new_generation(admin, copy)
    return copy


def archive_of(bank: Bank, objects: list[dict[str, Any]] | None = None) -> bytes:
    manifest = bank.manifest(6)
    wanted = None if objects is None else {one["object"] for one in objects}
    refs = [ref for ref in manifest.refs if wanted is None or ref.object in wanted]
    data = b"".join(bank.export_chunks(manifest, refs))
    assert len(data) == packed_bytes(manifest, refs)
    return data


def test_upload_what_is_missing_then_activate(admin: Admin, source: Bank) -> None:
    manifest = source.manifest(6)
    json_headers = {"content-type": "application/json"}
    missing = admin.ask("POST", "/generations/missing", content=manifest.to_bytes(), headers=json_headers).json()
    assert (missing["generation"], missing["is_in_bank"]) == (6, False)
    assert {one["object"] for one in missing["objects"]} == {manifest.gate.object, manifest.experts[-1].object}
    answer = admin.upload(archive_of(source, missing["objects"]))
    assert answer.json() == {"generation": 6, "manifest_sha256": manifest.digest}
    assert admin.states()[6] == "on disk"
    assert admin.house.bank.current() == 4
    assert admin.house.bank.verify() == []
    assert admin.post("/activate", generation=6, expected_generation=4).json()["serving"] == 6
    missing = admin.ask("POST", "/generations/missing", content=manifest.to_bytes(), headers=json_headers).json()
    assert missing == {"generation": 6, "is_in_bank": True, "objects": []}


def test_an_upload_can_be_repeated(admin: Admin, source: Bank) -> None:
    data = archive_of(source)
    assert [admin.upload(data).status_code for _ in range(2)] == [200, 200]


def untouched(admin: Admin) -> bool:
    house = admin.house
    strangers = [path for path in house.bank.root.rglob("*") if path.name.startswith((".tmp", "tmp"))]
    return house.bank.generations() == [0, 1, 2, 3, 4, 5] and not strangers and house.bank.current() == 4


def test_a_manifest_that_may_not_enter(admin: Admin, tmp_path: Any) -> None:
    def ask(manifest: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return admin.ask("POST", "/generations/missing", content=manifest, headers=headers)

    stranger = make_bank(tmp_path / "base", [], base=BASE.model_copy(update={"weights_sha256": "cd" * 32}))
    assert code_of(ask(stranger.manifest().to_bytes()), 422) == "bank_mismatch"
    other = make_bank(tmp_path / "other", ["omega"])
    assert code_of(ask(other.manifest(1).to_bytes()), 409) == "bank_conflict"
    assert code_of(ask(b'{"format_version": 9}'), 422) == "bank_format_too_new"
    assert code_of(ask(b'{"format_version": 1}'), 422) == "bank_corrupt"


def test_archives_that_are_not_whole(admin: Admin, source: Bank) -> None:
    data = archive_of(source)
    assert code_of(admin.upload(data[: len(data) // 2]), 422) == "bank_corrupt"
    flipped = bytearray(data)
    flipped[-2000] ^= 1
    assert code_of(admin.upload(bytes(flipped)), 422) == "bank_corrupt"
    assert code_of(admin.upload(b""), 422) == "bank_corrupt"
    assert code_of(admin.upload(archive_of(source, [])), 422) == "bank_corrupt"
    assert untouched(admin)


def test_archives_that_are_too_large(admin: Admin) -> None:
    """Said in the header, or found out while it comes."""
    assert code_of(admin.upload(b"", **{"content-length": str(MAX_UPLOAD_BYTES + 1)}), 413) == "too_large"

    async def endless() -> Any:
        for _ in range(100):
            yield bytes(64 << 10)

    assert code_of(admin.upload(endless()), 413) == "too_large"
    assert untouched(admin)


def test_a_body_that_is_not_a_plain_archive(admin: Admin, source: Bank) -> None:
    response = admin.ask("POST", "/generations", content=archive_of(source), headers={"content-type": "text/plain"})
    assert code_of(response, 415) == "unsupported_media_type"
    assert code_of(admin.upload(archive_of(source), **{"content-encoding": "gzip"}), 415) == "unsupported_media_type"
    assert untouched(admin)


def test_a_client_that_stops_sending(admin: Admin, source: Bank) -> None:
    async def stalled() -> Any:
        yield archive_of(source)[:1000]
        await asyncio.sleep(60)

    assert code_of(admin.upload(stalled()), 408) == "request_timeout"
    assert untouched(admin)


def test_a_full_disk(admin: Admin, source: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("server.uploads._write_through", full)
    assert code_of(admin.upload(archive_of(source)), 507) == "disk_full"
    monkeypatch.undo()
    monkeypatch.setattr(admin.house.bank.disk, "write", full)
    assert code_of(admin.upload(archive_of(source)), 507) == "disk_full"
    assert code_of(admin.post("/activate", generation=5), 507) == "disk_full"
    assert untouched(admin)
    assert admin.states()[4] == "serving"


def test_one_upload_at_a_time(admin: Admin, source: Bank) -> None:
    uploads = admin.house.service.serving.administration.uploads  # type: ignore[union-attr]

    async def take() -> None:
        await uploads._one.acquire()

    admin._runner.run(take())
    assert code_of(admin.upload(archive_of(source)), 429) == "busy"
