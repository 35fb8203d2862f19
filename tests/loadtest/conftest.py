from collections.abc import Iterator

import pytest

from tests.loadtest.scripted import scripted_server


@pytest.fixture(scope="session")
def scripted() -> Iterator[str]:
    """The URL of a server that does what the prompts say."""
    with scripted_server() as url:
        yield url
