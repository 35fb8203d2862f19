"""The pictures of docs/console.md: `python -m tests.console.screenshots URL ADMIN_URL FOLDER`, of the demo bank served.

The server needs no keys. Generation 3 is activated and rolled back, so that the charts have something to show.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, expect

from adapters.admin_client import AdminClient
from tests.console.chromium import browser
from tests.console.pages import ask
from tests.server.process import REPO

EXAMPLES = [json.loads(line) for line in (REPO / "demo/examples.jsonl").read_text().splitlines()]
TALK = "What is the capital of France, and which river is it on?"
WIDE, PHONE = (1120, 720), (390, 780)


def chat(page: Page) -> None:
    page.get_by_label("send earlier turns along").evaluate("one => one.click()")
    for question in (EXAMPLES[0]["prompt"], TALK, EXAMPLES[2]["prompt"]):
        ask(page, question)
    page.locator(".turn").last.locator(".answer .token").first.hover()
    expect(page.locator(".weights")).to_be_visible()
    page.wait_for_timeout(200)


def bank(page: Page) -> None:
    expect(page.locator(".growth")).to_be_visible()


def change(page: Page) -> None:
    page.locator("table.cards tr", has_text="on disk").first.get_by_role("button", name="Activate").click()
    expect(page.get_by_role("dialog").locator(".changes")).to_be_visible()


def generations(page: Page) -> None:
    expect(page.locator("table.cards")).to_be_visible()


def take(
    opened: Browser, url: str, to: Path, is_dark: bool, size: tuple[int, int], prepare: Callable[[Page], None]
) -> None:
    """`url`: of the page, its view included; `size`: width and height."""
    scheme: Literal["dark", "light"] = "dark" if is_dark else "light"
    page = opened.new_page(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    page.goto(url)
    prepare(page)
    page.screenshot(path=to)
    page.close()


def live(opened: Browser, url: str, admin_url: str, to: Path) -> None:
    """Some minutes of questions, with another generation for a while."""
    page = opened.new_page(viewport={"width": WIDE[0], "height": 1000})
    page.goto(f"{url}/console#live")
    admin = AdminClient(admin_url)
    timers = [threading.Timer(20, admin.activate, [3]), threading.Timer(45, admin.rollback)]
    for timer in timers:
        timer.start()
    asking = opened.new_page()
    asking.goto(f"{url}/console")
    for number in range(40):
        ask(asking, (*(example["prompt"] for example in EXAMPLES), TALK)[number % 5])
        asking.get_by_role("button", name="New conversation").click()
        asking.wait_for_timeout(700)
    for timer in timers:
        timer.join()
    page.bring_to_front()
    page.wait_for_timeout(2500)
    page.screenshot(path=to)


def main() -> None:
    url, admin_url, folder = sys.argv[1:]
    expect.set_options(timeout=120_000)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        for name, is_dark, size in (("light", False, WIDE), ("dark", True, WIDE), ("phone", False, PHONE)):
            take(opened, f"{url}/console", place / f"chat-{name}.png", is_dark, size, chat)
        take(opened, f"{url}/console#bank", place / "bank.png", False, (WIDE[0], 860), bank)
        take(opened, f"{admin_url}/console", place / "admin.png", False, (WIDE[0], 470), generations)
        take(opened, f"{admin_url}/console", place / "admin-change.png", True, (WIDE[0], 620), change)
        live(opened, url, admin_url, place / "live.png")


if __name__ == "__main__":
    main()
