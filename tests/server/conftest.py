from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapters.bank import Bank


@pytest.fixture(scope="module")
def http(server: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the running server."""
    with httpx.Client(base_url=server, timeout=300) as plain:
        yield plain


@pytest.fixture(scope="session")
def current(demo_bank: Path) -> int:
    """The generation in service."""
    return Bank.open(demo_bank).current()
