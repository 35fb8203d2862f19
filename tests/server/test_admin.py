"""The admin API without an engine: what each route answers, and that a refusal says what and why."""

import asyncio
import errno
import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from adapters.bank import Bank, Manifest
from adapters.bank.archive import packed_bytes
from server import console
from server.access import Access
from server.admin import PREFIX
from server.app import build_admin_app
from server.keys import KeyRing, line_for
from tests.adapters.bank.factory import BASE, make_bank, next_manifest
from tests.server.house import MAX_UPLOAD_BYTES, House
from tests.server.routes import assert_every_route_needs_a_key

KEY, ADMIN_KEY = "seta-Alices-key", "seta-Roots-key"
TAR = {"content-type": "application/x-tar"}


class Admin:
    """A client of the admin app; every call waits until memory has settled."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.app = build_admin_app(house.service)
        self._runner = asyncio.Runner()
        self._runner.run(house.operations.start())

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                response = await http.request(method, PREFIX + path, **options)
            await self.house.operations.settle()
            return response

        return self._runner.run(request())

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.ask("POST", path, json=fields)

    def upload(self, content: Any, **headers: str) -> httpx.Response:
        return self.ask("POST", "/generations", content=content, headers={**TAR, **headers})

    def states(self) -> dict[int, str]:
        return {one["generation"]: one["state"] for one in self.ask("GET", "/generations").json()["generations"]}

    def end_requests(self) -> None:
        async def end() -> None:
            self.house.requests.close()

        self._runner.run(end())

    def close(self) -> None:
        self._runner.close()


@pytest.fixture
def admin(house: House) -> Iterator[Admin]:
    opened = Admin(house)
    yield opened
    opened.close()


def code_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"] and error["type"] in ("invalid_request_error", "server_error")
    return str(error["code"])


def test_list_generations(admin: Admin) -> None:
    admin.house.ask()
    admin.house.ask("demo-base")
    answer = admin.ask("GET", "/generations").json()
    assert (answer["serving"], answer["max_resident"], answer["base_in_flight"]) == (4, 2, 1)
    assert answer["rollback_to"] == 3
    assert answer["problems"] == []
    assert [one["generation"] for one in answer["generations"]] == [0, 1, 2, 3, 4, 5]
    manifest = admin.house.bank.manifest(4)
    assert answer["generations"][4] == {
        "generation": 4,
        "state": "serving",
        "model": "demo@4",
        "is_pinned": False,
        "is_on_disk": True,
        "in_flight": 1,
        "object_bytes": sum(ref.object_bytes for ref in manifest.refs),
        "resident_bytes": 1000,
        "created": "2026-01-02T03:04:05Z",
        "parent": 3,
        "tasks": ["alpha", "beta", "gamma", "delta"],
        "manifest_sha256": manifest.digest,
    }
    assert answer["generations"][5]["state"] == "on disk"
    assert answer["generations"][5]["resident_bytes"] is None


def test_a_bank_that_is_gone_or_damaged_is_a_problem_not_a_failure(admin: Admin) -> None:
    root = admin.house.bank.root
    (root / "generations/00002.json").write_text("{")
    answer = admin.ask("GET", "/generations").json()
    assert len(answer["problems"]) == 1 and "generations/00002.json" in answer["problems"][0]
    root.rename(root.with_name("gone"))
    answer = admin.ask("GET", "/generations").json()
    assert [(one["generation"], one["is_on_disk"]) for one in answer["generations"]] == [(4, False)]
    assert len(answer["problems"]) == 1
    assert str(root.parent) not in json.dumps(answer)


def test_list_experts(admin: Admin) -> None:
    answer = admin.ask("GET", "/experts").json()
    assert (answer["generation"], answer["total_tokens"], answer["base_tokens"]) == (4, 100, 60)
    shares = {one["id"]: (one["kind"], one["tasks"], one["tokens"], one["token_share"]) for one in answer["experts"]}
    assert shares["alpha.unique"] == ("unique", ["alpha"], 30, 0.3)
    assert shares["beta.unique"] == ("unique", ["beta"], 0, 0.0)
    manifest = admin.house.bank.manifest(4)
    assert answer["experts"][0]["object"] == manifest.experts[0].object
    assert answer["experts"][0]["object_bytes"] == manifest.experts[0].object_bytes


def test_activate_and_roll_back(admin: Admin) -> None:
    answer = admin.post("/activate", generation=5, expected_generation=4).json()
    assert (answer["serving"], answer["previous"]) == (5, 4)
    assert admin.states()[5] == "serving" and admin.states()[4] == "resident"
    again = admin.post("/activate", generation=5, expected_generation=4).json()
    assert (again["serving"], again["previous"]) == (5, 5)
    refused = admin.post("/activate", generation=3, expected_generation=4)
    assert code_of(refused, 409) == "generation_mismatch"
    assert refused.json()["error"]["details"] == {"serving": 5}
    assert admin.ask("GET", "/generations").json()["rollback_to"] == 4
    answer = admin.post("/rollback").json()
    assert (answer["serving"], answer["previous"]) == (4, 5)
    assert admin.ask("GET", "/generations").json()["rollback_to"] == 3
    assert admin.house.bank.current() == 4


def test_it_is_told_what_a_roll_back_would_serve(admin: Admin) -> None:
    """What served before, not the parent; the parent where nothing did; nothing where there is none."""
    for number, told in ((None, 3), (2, 4), (5, 2), (0, 5)):
        if number is not None:
            admin.post("/activate", generation=number)
        assert admin.ask("GET", "/generations").json()["rollback_to"] == told
    while (told := admin.ask("GET", "/generations").json()["rollback_to"]) is not None:
        assert admin.post("/rollback").json()["serving"] == told
    assert code_of(admin.post("/rollback"), 409) == "nothing_to_roll_back"


def test_too_many_generations(admin: Admin) -> None:
    admin.house.ask()
    admin.post("/activate", generation=5)
    refused = admin.post("/activate", generation=3)
    assert code_of(refused, 429) == "too_many_generations"
    assert refused.headers["retry-after"] == "5"
    assert [one["generation"] for one in refused.json()["error"]["details"]["holders"]] == [4, 5]


def test_retire(admin: Admin) -> None:
    admin.house.ask()
    admin.post("/activate", generation=5)
    assert admin.post("/retire", generation=4).json() == {"generation": 4, "in_flight": 1}
    assert admin.states()[4] == "retiring"
    admin.end_requests()
    assert admin.states()[4] == "on disk"
    assert code_of(admin.post("/retire", generation=4), 404) == "not_in_memory"
    assert code_of(admin.post("/retire", generation=5), 409) == "in_service"


def test_pin(admin: Admin) -> None:
    assert admin.ask("POST", "/generations/2/pin").json() == {
        "generation": 2,
        "is_pinned": True,
        "resident_bytes": 1000,
    }
    assert code_of(admin.post("/retire", generation=2), 409) == "pinned"
    assert admin.ask("DELETE", "/generations/2/pin").json()["is_pinned"] is False
    assert code_of(admin.ask("DELETE", "/generations/3/pin"), 404) == "not_in_memory"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "generation"),
        ({"generation": "5"}, "generation"),
        ({"generation": -1}, "generation"),
        ({"generation": 5.0}, "generation"),
        ({"generation": True}, "generation"),
        ({"generation": 5, "expected": 4}, "expected"),
        ({"generation": 5, "expected_generation": "4"}, "expected_generation"),
        ({"generation": 10**12}, "generation"),
    ],
)
def test_a_wrong_order_names_the_field(admin: Admin, body: dict[str, Any], param: str) -> None:
    response = admin.post("/activate", **body)
    assert code_of(response, 400) == "invalid_value"
    assert response.json()["error"]["param"] == param
    assert admin.house.loader.loads == [4]


def test_what_is_not_an_order(admin: Admin) -> None:
    assert code_of(admin.ask("POST", "/activate", content=b"generation=5"), 415) == "unsupported_media_type"
    large = {"generation": 5, "x": "x" * (64 << 10)}
    assert code_of(admin.ask("POST", "/activate", json=large), 413) == "request_too_large"
    assert code_of(admin.ask("POST", "/generations/x/pin"), 400) == "invalid_value"
    missing = admin.ask("GET", "/generations/missing")  # not a generation of that name
    assert (code_of(missing, 405), missing.headers["allow"]) == ("method_not_allowed", "POST")
    assert code_of(admin.post("/activate", generation=99), 404) == "not_in_bank"
    assert code_of(admin.ask("GET", "/nothing"), 404) == "not_found"
    assert code_of(admin.ask("GET", "/activate"), 405) == "method_not_allowed"


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


def test_while_the_server_loads_or_stops(admin: Admin) -> None:
    admin.house.service.is_stopping = True
    assert code_of(admin.ask("GET", "/generations"), 503) == "stopping"
    admin.house.service.is_stopping = False
    admin.house.service.serving = None
    assert code_of(admin.post("/rollback"), 503) == "loading"


def test_every_route_needs_an_admin_key(bank: Bank) -> None:
    house = House(bank)
    clients, admins = (KeyRing(key, lambda key=key: line_for("somebody", key)) for key in (KEY, ADMIN_KEY))  # type: ignore[misc]
    house.service.access = Access(clients, admins)
    house.service.serving = None
    assert_every_route_needs_a_key(build_admin_app(house.service), ADMIN_KEY, KEY, set(console.OPEN_PATHS))


class TestOpenApi:
    def test_every_route_and_what_it_takes(self, admin: Admin) -> None:
        document = admin.ask("GET", "/openapi.json").json()
        assert set(document["paths"]) == {
            PREFIX + path
            for path in (
                "/generations",
                "/generations/missing",
                "/generations/{generation}",
                "/generations/{generation}/pin",
                "/bank",
                "/experts",
                "/activate",
                "/rollback",
                "/retire",
            )
        }
        body = document["paths"][f"{PREFIX}/activate"]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert schema["required"] == ["generation"] and schema["additionalProperties"] is False

    def test_refusals_are_documented(self, admin: Admin) -> None:
        document = admin.ask("GET", "/openapi.json").json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answers = set(operation["responses"])
                assert {"200", "401", "403", "405", "500", "503"} <= answers, (path, method)
                if "parameters" in operation or "requestBody" in operation:
                    assert "400" in answers, (path, method)
        assert document["security"] == [{"key": []}]
        text = json.dumps(document)
        assert "HTTPValidationError" not in text
        assert text.count('"$ref"') > 20
