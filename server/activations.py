"""Orders that change what serves, counted by their result."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from adapters.bank import BankNotFound

from .errors import ApiError
from .histogram import Histogram
from .operations import Change, Operations

Order = Literal["activate", "rollback"]
Result = Literal["ok", "refused", "failed"]
ORDERS: tuple[Order, ...] = ("activate", "rollback")
RESULTS: tuple[Result, ...] = ("ok", "refused", "failed")


class Activations:
    """`refused`: the order was wrong or came at the wrong time. `failed`: the generation is at fault, or we are."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Order, Result]] = Counter()
        self.duration = Histogram()
        self.activated_at = time.time()
        """When what serves began to serve (Unix time)."""

    @contextmanager
    def measured(self, order: Order) -> Iterator[None]:
        start = time.monotonic()
        result: Result = "failed"
        try:
            yield
            result = "ok"
            self.duration.observe(time.monotonic() - start)
        except (ApiError, BankNotFound) as error:
            result = "failed" if isinstance(error, ApiError) and error.status >= 500 else "refused"
            raise
        finally:
            self.counts[order, result] += 1


class MeteredOperations(Operations):
    """`Operations`, whose activations and roll-backs are counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activations = Activations()

    async def start(self) -> None:
        await super().start()
        self.activations.activated_at = time.time()

    async def activate(self, number: int, expected: int | None = None) -> Change:
        with self.activations.measured("activate"):
            return self._noted(await super().activate(number, expected))

    async def rollback(self, expected: int | None = None) -> Change:
        with self.activations.measured("rollback"):
            return self._noted(await super().rollback(expected))

    def _noted(self, change: Change) -> Change:
        if change.serving != change.previous:
            self.activations.activated_at = time.time()
        return change
