"""The admin page in a real browser: it shows what would change, does it, and says what became of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from adapters.admin_client import AdminClient
from adapters.bank import Bank, Manifest, TaskInfo
from tests.console.conftest import ADMIN_KEY, KEY, Open, Stage
from tests.console.pages import FOOD, ask, experts, fits


@pytest.fixture
def admin(stage: Stage) -> Iterator[AdminClient]:
    """Orders beside the page; afterwards generation 4 serves again."""
    client = AdminClient(stage.admin_url, ADMIN_KEY)
    yield client
    client.activate(4)


@pytest.fixture
def page(open_page: Open, stage: Stage, admin: AdminClient) -> Page:
    opened = open_page(stage.admin_url, ADMIN_KEY)
    expect(heading(opened)).to_have_text("Generation 4 serves")
    return opened


def heading(page: Page) -> Locator:
    return page.locator(".orders h2")


def row(page: Page, generation: int) -> Locator:
    return page.locator("table.cards tbody tr").filter(has=page.get_by_text(str(generation), exact=True))


def next_generation(source: Path) -> Manifest:
    """Generation 5 of a copy of the bank: one more task, one expert with other weights, one task a little worse."""
    bank = Bank.open(source)
    old = bank.manifest(4)
    new = old.experts[3].model_copy(update={"id": "recipes.unique", "tasks": ("recipes",)})
    changed = old.experts[1].model_copy(update={"object": old.experts[0].object, "object_bytes": 2663080})
    manifest = old.model_copy(
        update={
            "generation": 5,
            "parent": 4,
            "tasks": (*old.tasks, TaskInfo(name="recipes", generation=5, num_train=1200, num_test=300)),
            "experts": (old.experts[0], changed, *old.experts[2:], new),
            "membership": (*((*one, 0) for one in old.membership), (0, 0, 0, 0, 1)),
            "accuracy_matrix": (*old.accuracy_matrix, (83.33, 90.0, 62.67, 89.0, 78.2)),
        }
    )
    bank.publish(manifest)
    return manifest


def test_what_there_is(page: Page) -> None:
    expect(page.locator("table.cards tbody tr")).to_have_count(5)
    expect(row(page, 4)).to_contain_text("serving")
    expect(row(page, 3)).to_contain_text("on disk")
    expect(row(page, 4).get_by_role("button", name="Activate")).to_have_count(0)
    expect(page.locator(".state")).to_have_text("generation 4")


def test_activation_shows_the_change_first_and_then_makes_it(
    page: Page, open_page: Open, stage: Stage, admin: AdminClient
) -> None:
    chat = open_page(stage.url, KEY)
    assert {expert for _, expert in experts(ask(chat, FOOD).locator(".answer"))} == {"foods.unique"}
    row(page, 3).get_by_role("button", name="Activate").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("generation 4 → generation 3")
    expect(dialog.locator(".minus")).to_have_text(["task foods is no longer known", "foods.unique unique, 2.5 MiB"])
    expect(dialog).to_contain_text("3 experts unchanged")
    expect(dialog.locator("tr", has_text="foods")).to_contain_text("88.7 %")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert admin.generations()["serving"] == 4, "showing is not doing"
    row(page, 3).get_by_role("button", name="Activate").click()
    dialog.get_by_role("button", name="Activate").click()
    expect(page.locator(".news")).to_contain_text("Generation 3 serves, 4 did before")
    expect(heading(page)).to_have_text("Generation 3 serves")
    assert admin.generations()["serving"] == 3
    expect(chat.locator(".state")).to_have_text("generation 3")
    turn = ask(chat, FOOD)
    assert {expert for _, expert in experts(turn.locator(".answer"))} == {"base model"}
    expect(turn.locator(".facts")).to_contain_text("generation 3")


def test_roll_back(page: Page, admin: AdminClient) -> None:
    admin.activate(2)
    expect(heading(page)).to_have_text("Generation 2 serves")
    page.get_by_role("button", name="Roll back to 4").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".plus")).to_contain_text(["icd10", "foods", "icd10.unique", "foods.unique"])
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.locator(".news")).to_contain_text("Generation 4 serves, 2 did before")
    assert admin.generations()["serving"] == 4


def test_if_somebody_was_faster_nothing_is_done(page: Page, admin: AdminClient) -> None:
    row(page, 3).get_by_role("button", name="Activate").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".changes")).to_be_visible()
    admin.activate(1)
    dialog.get_by_role("button", name="Activate").click()
    expect(dialog.locator("[role=alert]")).to_contain_text("generation_mismatch")
    assert admin.generations()["serving"] == 1


def test_upload_then_activate(page: Page, stage: Stage, admin: AdminClient, demo_bank: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_bank, source)
    manifest = next_generation(source)
    archive = tmp_path / "generation5.tar"
    archive.write_bytes(b"".join(Bank.open(source).export_chunks(manifest, manifest.refs)))
    page.get_by_role("button", name="Upload").click()
    dialog = page.get_by_role("dialog")
    send = dialog.get_by_role("button", name="Upload")
    expect(send).to_be_disabled()
    page.set_input_files("input[type=file]", {"name": "x.tar", "mimeType": "application/x-tar", "buffer": b"x" * 2000})
    expect(dialog.locator("[role=alert]")).to_contain_text("is no archive of a generation")
    expect(send).to_be_disabled()
    page.set_input_files("input[type=file]", str(archive))
    expect(dialog.locator(".plus").first).to_contain_text("task recipes, learned from 1,200 examples")
    expect(dialog.locator(".other")).to_contain_text(["licences.unique"])
    expect(dialog.locator("tr", has_text="icd10")).to_contain_text("−0.7")
    send.click()
    expect(page.locator(".news")).to_contain_text("Generation 5 is in the bank")
    assert Bank.open(stage.bank).manifest(5) == manifest
    assert admin.generations()["serving"] == 4
    row(page, 5).get_by_role("button", name="Activate").click()
    dialog.get_by_role("button", name="Activate").click()
    expect(heading(page)).to_have_text("Generation 5 serves")
    page.get_by_role("button", name="Upload").click()
    page.set_input_files("input[type=file]", str(archive))
    expect(dialog).to_contain_text("Generation 5 is in the bank already")
    expect(send).to_be_disabled()


def test_an_archive_that_the_server_refuses(page: Page, admin: AdminClient, tmp_path: Path, demo_bank: Path) -> None:
    bank = Bank.open(demo_bank)
    manifest = bank.manifest(4).model_copy(update={"generation": 9, "parent": 4})
    data = bytearray(b"".join(bank.export_chunks(manifest, manifest.refs)))
    data[-3000] ^= 1
    page.get_by_role("button", name="Upload").click()
    archive = tmp_path / "damaged.tar"
    archive.write_bytes(data)
    page.set_input_files("input[type=file]", str(archive))
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Upload").click()
    expect(dialog.locator("[role=alert]")).to_contain_text("bank_corrupt")
    assert 9 not in [one["generation"] for one in admin.generations()["generations"]]


def test_pin_unpin_and_retire(page: Page, admin: AdminClient) -> None:
    row(page, 1).get_by_role("button", name="Pin").click()
    expect(row(page, 1)).to_contain_text("pinned")
    expect(row(page, 1)).to_contain_text("demo@1")
    row(page, 1).get_by_role("button", name="Unpin").click()
    expect(row(page, 1)).not_to_contain_text("pinned")
    row(page, 1).get_by_role("button", name="Retire").click()
    expect(row(page, 1)).to_contain_text("on disk")


def test_a_clients_key_is_refused_and_so_is_any_other(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.admin_url)
    for key, message in ((KEY, "other listener"), ("seta-x", "not known")):
        page.locator("dialog input").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("dialog [role=alert]")).to_contain_text(message)
    expect(page.locator("table.cards")).to_have_count(0)


def test_the_page_of_one_listener_cannot_ask_the_other(browser: Browser, stage: Stage) -> None:
    """The browser itself refuses, by the page's policy."""
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto(f"{stage.url}/console")
    asked = f"fetch('{stage.admin_url}/admin/v1/generations').then(() => 'answered', error => error.name)"
    assert page.evaluate(asked) == "TypeError"
    assert any("Content Security Policy" in one and "connect-src" in one for one in told)
    page.close()


def test_on_a_phone(open_page: Open, stage: Stage, admin: AdminClient) -> None:
    page = open_page(stage.admin_url, ADMIN_KEY, viewport={"width": 360, "height": 740})
    expect(heading(page)).to_have_text("Generation 4 serves")
    assert fits(page)
    row(page, 3).get_by_role("button", name="Activate").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".changes")).to_be_visible()
    box = dialog.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth")
