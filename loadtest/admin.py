"""The server's admin API, as far as the hot-add scenario needs it: what serves, activate, roll back."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from .errors import LoadTestError

PREFIX = "/admin/v1"
TIMEOUT_SECONDS = 600.0
MAX_DETAIL_CHARS = 200


class Refused(Exception):
    """The server did not do it; the message is its own, on one line."""


class Admin:
    """One admin listener. `session` belongs to the caller."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None) -> None:
        self._session = session
        self._url = url + PREFIX
        self._key = key

    async def generations(self) -> tuple[int, set[int]]:
        """(the one in service, all that could be). Raises LoadTestError."""
        try:
            answer = await self._ask("GET", "/generations", None)
            return int(answer["serving"]), {int(one["generation"]) for one in answer["generations"]}
        except Refused as error:
            raise LoadTestError(f"--admin-url: {self._url}/generations: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise LoadTestError(f"--admin-url: {self._url}/generations is not the admin API of seta serve") from error

    async def activate(self, generation: int, expected: int | None) -> int:
        """The generation that serves now. Raises Refused."""
        return await self._change("/activate", {"generation": generation, "expected_generation": expected})

    async def rollback(self, expected: int | None) -> int:
        """The generation that serves now. Raises Refused."""
        return await self._change("/rollback", {"expected_generation": expected})

    async def _change(self, path: str, order: dict[str, Any]) -> int:
        serving = (await self._ask("POST", path, order)).get("serving")
        if not isinstance(serving, int):
            raise Refused("the answer names no generation in service")
        return serving

    async def _ask(self, method: str, path: str, order: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with self._session.request(
                method, self._url + path, json=order, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                text = await response.text(errors="replace")
                if response.status != 200:
                    raise Refused(self._shown(f"http {response.status}: {_message(text)}"))
                answer = json.loads(text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Refused(self._shown(f"{type(error).__name__}: {error}")) from error
        except ValueError as error:
            raise Refused("the answer is not JSON") from error
        return answer if isinstance(answer, dict) else {}

    def _shown(self, text: str) -> str:
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text if len(text) <= MAX_DETAIL_CHARS else text[:MAX_DETAIL_CHARS] + "…"


def _message(text: str) -> str:
    """The message of an error in OpenAI's shape, else the text."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text
