"""Fixtures of the console's browser tests (`make test-console`): a browser, the scripted server, a watched page."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.console.chromium import browser as open_browser
from tests.server.process import REPO, free_port, status_of

START_SECONDS = 120.0
KEY, ADMIN_KEY = "seta-Alices-key", "seta-Roots-key"


@dataclass
class Stage:
    """`tests.console.scripted`, running on ports of its own with a bank of its own."""

    bank: Path
    port: int
    admin_port: int
    flags: tuple[str, ...]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.console.scripted", str(self.bank), str(self.port), str(self.admin_port)]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        self.process = subprocess.Popen([*command, *self.flags], cwd=REPO, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while status_of(f"{self.url}/ready") != 200 or status_of(f"{self.admin_url}/console") != 200:
            assert self.process.poll() is None and time.monotonic() < deadline, "the scripted server does not start"
            time.sleep(0.1)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def stage(demo_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With keys."""
    root = shutil.copytree(demo_bank, tmp_path_factory.mktemp("stage") / "bank")
    running = Stage(root, free_port(), free_port(), ("--keys",))
    running.start()
    yield running
    running.kill()


class Watch:
    """What a page does besides what it shows: errors, what it asks for, and whom."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._on_console)
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        is_status = message.text.startswith("Failed to load resource")  # the browser's line about a 4xx, or no server
        if message.type in ("error", "warning") and not is_status:
            self.problems.append(message.text)

    def _on_request(self, request: Request) -> None:
        self.asked.append(request.url)


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a page in a browser profile of its own; afterwards it must have had no error and asked nobody else."""
    opened: list[tuple[Page, Watch, str]] = []

    def open_page(url: str, key: str | None = None, path: str = "/console", **options: object) -> Page:
        page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(20_000)
        opened.append((page, Watch(page), url))
        if key is not None:
            page.add_init_script(f"sessionStorage.setItem('seta.key', {key!r})")
        page.goto(url + path)
        return page

    yield open_page
    for page, watch, url in opened:
        page.context.close()
        assert watch.problems == []
        assert [one for one in watch.asked if not one.startswith(f"{url}/")] == []
