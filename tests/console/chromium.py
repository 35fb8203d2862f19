"""A real browser for tests: the Chromium on PATH, or Debian's package, driven by Playwright.

Playwright brings none of its own. Chromium's background traffic is switched off: what it asks for, the page asked for.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@functools.cache
def chromium() -> str:
    """Its path. Fails, and says how to help, where there is none and none can be installed."""
    found = _on_path()
    if found is None:
        _install()
        found = _on_path()
    if found is None:
        pytest.fail("apt-get installed chromium, and it is not on PATH")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    is_root = os.geteuid() == 0
    with sync_playwright() as playwright:
        arguments = [*_ARGUMENTS, "--no-sandbox"] if is_root else _ARGUMENTS  # its sandbox refuses to run as root
        opened = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        try:
            yield opened
        finally:
            opened.close()


def _on_path() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.fail("there is no Chromium on PATH, and it cannot be installed from here: apt-get install chromium")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        run = subprocess.run(["apt-get", "-q", *command], env=environment, capture_output=True, text=True, timeout=900)
        if run.returncode != 0:
            pytest.fail(f"there is no Chromium on PATH, and Debian's cannot be installed: {run.stderr[-500:]}")
