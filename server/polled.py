"""A value that costs something to get: asked for now and then, never waited for long; the last answer stands in."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

logger = logging.getLogger("seta.server")

Value = TypeVar("Value")


class Polled(Generic[Value]):
    """`value`, asked for at most once in `min_age_seconds`.

    A question that is not answered within `patience_seconds` is waited for once: those who come while it is still under
    way get the last answer at once.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Value]],
        value: Value,
        what: str,
        min_age_seconds: float = 1.0,
        patience_seconds: float = 2.0,
    ) -> None:
        self.value = value
        self._ask = ask
        self._what = what
        self._min_age_seconds = min_age_seconds
        self._patience_seconds = patience_seconds
        self._asked_at = float("-inf")
        self._answered_at: float | None = None
        self._asking: asyncio.Task[None] | None = None

    @property
    def age_seconds(self) -> float | None:
        """How old the value is; None before the first answer."""
        return None if self._answered_at is None else time.monotonic() - self._answered_at

    async def refresh(self) -> None:
        """Bring the value up to date, or give up. Raises nothing."""
        if self._asking is None or self._asking.done():
            if time.monotonic() - self._asked_at < self._min_age_seconds:
                return
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._update())
        patience = self._asked_at + self._patience_seconds - time.monotonic()
        if patience > 0:
            await asyncio.wait({self._asking}, timeout=patience)

    async def _update(self) -> None:
        asked_at = self._asked_at
        try:
            self.value = await self._ask()
        except Exception as error:  # whatever ails the one who is asked, the other metrics must still be read
            logger.warning("%s: no answer: %s", self._what, type(error).__name__)
            return
        self._answered_at = asked_at
