import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapters.bank import Bank
from tests.adapters.bank.factory import make_bank
from tests.server.admin_app import Admin
from tests.server.house import TASKS, House


@pytest.fixture(scope="module")
def http(server: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the running server."""
    with httpx.Client(base_url=server, timeout=300) as plain:
        yield plain


@pytest.fixture(scope="session")
def current(demo_bank: Path) -> int:
    """The generation in service."""
    return Bank.open(demo_bank).current()


@pytest.fixture(scope="session")
def bank_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bank(tmp_path_factory.mktemp("template") / "bank", TASKS).root


@pytest.fixture
def bank(bank_template: Path, tmp_path: Path) -> Bank:
    """Generations 0 to 5 of a base model that does not exist."""
    return Bank.open(shutil.copytree(bank_template, tmp_path / "bank"))


@pytest.fixture
def house(bank: Bank) -> House:
    return House(bank)


@pytest.fixture
def admin(house: House) -> Iterator[Admin]:
    opened = Admin(house)
    yield opened
    opened.close()
