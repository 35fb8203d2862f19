"""Running orders against a house in tests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.errors import ApiError
from server.operations import Operations
from tests.server.house import House


def run(house: House, story: Callable[[Operations], Awaitable[Any]]) -> Any:
    """Start the house, run the story, wait until all that can leave memory has left it."""

    async def all_of_it() -> Any:
        await house.operations.start()
        try:
            return await story(house.operations)
        finally:
            await house.operations.settle()

    return asyncio.run(all_of_it())


def refused(house: House, story: Callable[[Operations], Awaitable[Any]]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        run(house, story)
    return caught.value
