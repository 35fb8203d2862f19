"""The console's files: all of them served, none but them, nothing inline, nothing from elsewhere, as npm has them."""

import asyncio
import hashlib
import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from deploy import vendor
from server import console
from server.access import Access
from server.app import build_admin_app, build_app
from server.config import build_config
from server.keys import KeyRing, line_for
from server.service import Service
from tests.server.house import House

PAGE = Path(console.__file__).parent / "page"
OURS = sorted(path for path in PAGE.iterdir() if path.is_file())
KEYS = Access(*(KeyRing("keys", lambda name=name: line_for(name, name)) for name in ("client", "admin")))


@pytest.fixture
def apps(tmp_path: Path) -> dict[str, FastAPI]:
    service = Service(build_config(model="m", bank=tmp_path), KEYS)
    return {"chat.html": build_app(service), "admin.html": build_admin_app(service)}


def get(app: Any, *paths: str, **headers: str) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            return [await http.get(path, headers=headers) for path in paths]

    return asyncio.run(ask())


@pytest.mark.parametrize("page", ["chat.html", "admin.html"])
def test_every_file_is_served_without_a_key_and_with_the_policy(apps: dict[str, FastAPI], page: str) -> None:
    paths = sorted(console.OPEN_PATHS)
    for path, answer in zip(paths, get(apps[page], *paths), strict=True):
        file = PAGE / (page if path == console.PATH else path.removeprefix(f"{console.PATH}/"))
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        assert console.HEADERS.items() <= dict(answer.headers).items()
    served = {path.removeprefix(f"{console.PATH}/") for path in paths if path != console.PATH}
    on_disk = {str(path.relative_to(PAGE)) for path in PAGE.rglob("*") if path.is_file()}
    assert served == on_disk - {"chat.html", "admin.html"}


def test_the_policy_leaves_no_way_out_of_the_page() -> None:
    policy = dict(part.split(maxsplit=1) for part in console.HEADERS["content-security-policy"].split("; "))
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("base-uri") == "'none'"
    assert policy.pop("form-action") == policy.pop("trusted-types") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy.values()) == {"'self'"}


def test_what_the_browser_has_is_not_sent_again(apps: dict[str, FastAPI]) -> None:
    (first,) = get(apps["chat.html"], "/console/client.js")
    for known, status in ((first.headers["etag"], 304), (f'"x", W/{first.headers["etag"]}', 304), ('"other"', 200)):
        (again,) = get(apps["chat.html"], "/console/client.js", **{"if-none-match": known})
        assert again.status_code == status
        assert (again.content == b"") == (status == 304)
        assert again.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/console/", "/console/admin.html", "/console/../auth.py", "/console/%2e%2e/auth.py"])
@pytest.mark.parametrize(("key", "status"), [("client", 404), (None, 401)])
def test_no_path_leads_out_of_the_folder(apps: dict[str, FastAPI], path: str, key: str | None, status: int) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    (answer,) = get(apps["chat.html"], path, **headers)
    assert answer.status_code == status


@pytest.mark.parametrize("path", [path for path in OURS if path.suffix == ".html"], ids=lambda path: path.name)
def test_the_pages_hold_no_script_no_style_and_name_files_that_exist(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"<script[^>]*>", text) == re.findall(r'<script type="module" src="[^"]*">', text)
    assert not re.search(r"<style|style=|\son\w+=|javascript:", text)
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert named and {f"/{name}" for name in named} <= console.OPEN_PATHS


@pytest.mark.parametrize("path", sorted(PAGE.rglob("*.js")), ids=lambda path: path.name)
def test_every_import_is_a_file_of_ours(path: Path) -> None:
    name = str(path.relative_to(PAGE))
    imported = re.findall(r'\b(?:import|export)\b[^;"]*?\bfrom\s*"([^"]*)"', path.read_text())
    imported += re.findall(r'\bimport\s*\(?\s*"([^"]*)"', path.read_text())
    for one in imported:
        assert one.startswith("./"), f"{name} imports {one}: a bare name or another host"
        assert normpath(join("/console", dirname(name), one)) in console.OPEN_PATHS, f"{name} imports {one}"


@pytest.mark.parametrize("path", [path for path in OURS if path.suffix in {".js", ".css"}], ids=lambda path: path.name)
def test_our_code_makes_no_markup_of_text_and_asks_no_other_host(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"https?://|//[a-z]+\.|url\(", text)
    assert len(text.splitlines()) <= 300


def test_the_libraries_are_those_of_the_table_unchanged() -> None:
    listed = json.loads((vendor.PLACE / "packages.json").read_text())
    assert [(one["name"], one["version"], one["licence"]) for one in listed] == [p[:3] for p in vendor.PACKAGES]
    digests = {name: digest for one in listed for name, digest in one["files"].items()}
    found = {path.name: path for path in vendor.PLACE.iterdir() if path.name != "packages.json"}
    assert set(found) == set(digests)
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == digests
    assert {f"{package.name}.LICENSE" for package in vendor.PACKAGES} <= set(found)


class TestBank:
    """What the picture of the bank is drawn from."""

    def ask(self, house: House, *paths: str) -> list[httpx.Response]:
        app = build_app(house_service(house)), build_admin_app(house_service(house))

        async def run() -> list[httpx.Response]:
            await house.operations.start()
            answers = []
            for path in paths:
                transport = httpx.ASGITransport(app["admin" in path])
                async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                    answers.append(await http.get(path))
            return answers

        return asyncio.run(run())

    def test_clients_and_administrators_see_the_same(self, house: House) -> None:
        ours, theirs = self.ask(house, "/v1/bank", "/admin/v1/bank")
        assert ours.json() == theirs.json()
        serving, manifest = ours.json()["serving"], house.bank.manifest(4)
        assert (serving["generation"], serving["manifest_sha256"]) == (4, manifest.digest)
        for field in ("tasks", "experts", "gate", "base", "accuracy_matrix"):
            assert serving[field] == manifest.model_dump(mode="json")[field]
        assert str(house.bank.root) not in ours.text

    def test_a_line_for_each_generation(self, house: House) -> None:
        (answer,) = self.ask(house, "/v1/bank")
        lines = answer.json()["generations"]
        assert [(one["generation"], one["num_tasks"], one["num_unique"], one["num_shared"]) for one in lines] == [
            (number, number, number, 0) for number in range(6)
        ]
        experts = house.bank.manifest(5).experts
        assert lines[5]["unique_bytes"] == sum(expert.object_bytes for expert in experts)
        assert lines[5]["mean_accuracy"] == 88.0 and lines[0]["mean_accuracy"] is None

    def test_a_generation_that_does_not_serve(self, house: House) -> None:
        in_memory, on_disk, missing = self.ask(house, *(f"/admin/v1/generations/{number}" for number in (4, 5, 9)))
        assert (in_memory.json()["generation"], on_disk.json()["generation"]) == (4, 5)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_in_bank")


def house_service(house: House) -> Service:
    return Service(build_config(model="m", bank=house.bank.root), Access(), house.service.serving)
