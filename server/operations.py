"""What an administrator can order: activate a generation, roll back, pin, retire. Each happens or changes nothing.

The order of an activation, and why:

1. The generation is loaded: read once, verified whole, packed, put into a free slot. Nobody can name it yet.
2. CURRENT is written. A crash before this point brings the old generation back, after it the new one; both are whole.
3. New requests are bound to it: one assignment, which cannot fail. Only then does the order's answer go out.
4. What is past the bound leaves memory, the least recently used first, each once its last request has ended.

The engine has one slot more than the bound, so that step 1 needs nobody to leave first and a failure costs nothing.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from adapters.bank import Bank, Manifest

from .errors import ApiError
from .generations import Generations, Resident
from .holders import holder

logger = logging.getLogger("seta.admin")

_MAX_HISTORY = 256


class Loads(Protocol):
    """What `server.loader.Loader` does."""

    async def load(self, manifest: Manifest) -> Resident: ...

    async def unload(self, resident: Resident) -> None: ...


@dataclass(frozen=True)
class Change:
    """`serving` serves new requests now, `previous` did before; the same if nothing changed."""

    serving: int
    previous: int
    seconds: float


class Operations:
    """Orders for the generations of one bank, of which at most `max_resident` (at least 2) stay in memory."""

    def __init__(self, generations: Generations, bank: Bank, loader: Loads, max_resident: int) -> None:
        self.max_resident = max_resident
        self.loading: int | None = None
        self._generations = generations
        self._bank = bank
        self._loader = loader
        self._history: deque[int] = deque(maxlen=_MAX_HISTORY)  # what served before, the latest last
        self._slots = asyncio.Lock()  # whoever fills or empties a slot of the engine
        self._switching = asyncio.Lock()
        self._tickets = 0
        self._last_switch = 0
        self._load: asyncio.Task[Resident] | None = None
        self._tidying: asyncio.Task[None] | None = None
        generations.on_idle = self._on_idle

    @property
    def rollback_to(self) -> int | None:
        """What `rollback` would serve now; None if nothing served before."""
        while self._history and self._history[-1] == self._generations.current:
            self._history.pop()
        return self._history[-1] if self._history else self._generations.manifest.parent

    async def start(self) -> None:
        """Load the bank's current generation and serve it. Raises: BankError."""
        manifest = await asyncio.to_thread(self._bank.manifest)
        async with self._in_memory(manifest.generation) as resident:
            self._generations.switch(resident.number)

    async def activate(self, number: int, expected: int | None = None) -> Change:
        """Serve a generation of the bank. `expected` must be the one in service, unless `number` itself is already.

        Raises: ApiError 409 generation_mismatch, superseded; 429 too_many_generations; BankError.
        """
        start, ticket = time.monotonic(), self._ticket()
        self._check_expected(number, expected)
        async with self._in_memory(number) as resident:
            previous = await self._switch(resident, expected, ticket)
        if previous != number:
            self._history.append(previous)
            logger.info("generation %d serves, %d did before", number, previous)
        return Change(number, previous, time.monotonic() - start)

    async def rollback(self, expected: int | None = None) -> Change:
        """Serve what served before: in this process, or else the parent of the generation in service.

        Raises: as `activate`, and ApiError 409 nothing_to_roll_back.
        """
        start, ticket, current = time.monotonic(), self._ticket(), self._generations.current
        number = self.rollback_to
        if number is None:
            raise ApiError(409, f"Nothing served before generation {current}", code="nothing_to_roll_back")
        if expected is not None:
            self._check_expected(number, expected)
        async with self._in_memory(number) as resident:
            await self._switch(resident, current, ticket)
        logger.info("rolled back: generation %d serves, %d did before", number, current)
        return Change(number, current, time.monotonic() - start)

    async def pin(self, number: int) -> Resident:
        """Keep a generation in memory, loading it if need be. Raises: ApiError 429; BankError."""
        async with self._in_memory(number) as resident:
            resident.is_open = resident.is_pinned = True
        self._tidy_soon()
        return resident

    def unpin(self, number: int) -> Resident:
        """Raises: ApiError 404 if it is not in memory."""
        resident = self._resident(number)
        resident.is_pinned = False
        return resident

    def retire(self, number: int) -> int:
        """Take no new request for a generation and free it once its last one has ended; how many it still has.

        A load under way is called off. Raises: ApiError 404 if it is not in memory, 409 if it serves, is pinned, or is
        being activated.
        """
        if number == self.loading and self._load is not None:
            self._load.cancel()
            return 0
        resident = self._resident(number)
        if number == self._generations.current:
            raise ApiError(409, f"Generation {number} is in service; activate another first", code="in_service")
        if resident.is_pinned:
            raise ApiError(409, f"Generation {number} is pinned; unpin it first", code="pinned")
        if resident.orders:
            raise ApiError(409, f"Generation {number} is being activated or pinned; try again", code="busy")
        resident.is_open = False
        logger.info("generation %d takes no new request, %d are in flight", number, resident.in_flight)
        self._generations.look(resident)
        return resident.in_flight

    async def settle(self) -> None:
        """Until everything that can leave memory has left it."""
        self._tidy_soon()
        while self._tidying is not None and not self._tidying.done():
            await asyncio.wait({self._tidying})

    @asynccontextmanager
    async def _in_memory(self, number: int) -> AsyncIterator[Resident]:
        """The generation, loaded if need be, and kept from being freed until the block ends."""
        resident = self._generations.residents.get(number)
        if resident is None:
            async with self._slots:
                resident = self._generations.residents.get(number) or await self._bring(number)
                resident.orders += 1
        else:
            resident.orders += 1
        try:
            yield resident
        finally:
            resident.orders -= 1
            self._generations.look(resident)

    async def _bring(self, number: int) -> Resident:
        manifest = await asyncio.to_thread(self._bank.manifest, number)
        await self._tidy()
        self._check_room()
        self.loading = number
        self._load = asyncio.create_task(self._loader.load(manifest))
        try:
            resident = await self._load
        except asyncio.CancelledError:
            self._load.cancel()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ApiError(409, f"Loading generation {number} was called off", code="load_called_off") from None
        finally:
            self.loading = self._load = None
        self._generations.put(resident)
        return resident

    async def _switch(self, resident: Resident, expected: int | None, ticket: int) -> int:
        """Make it CURRENT, then bind new requests to it; returns what served before."""
        async with self._switching:
            if self._last_switch > ticket:
                message = "A later order has been carried out meanwhile; nothing was changed"
                raise ApiError(409, message, code="superseded", details=self._now())
            self._check_expected(resident.number, expected)
            await asyncio.to_thread(self._bank.point_to, resident.manifest)
            previous = self._generations.current
            self._generations.switch(resident.number)
            self._last_switch = ticket
        self._tidy_soon()
        return previous

    def _check_expected(self, number: int, expected: int | None) -> None:
        current = self._generations.current
        if expected is not None and expected != current and number != current:
            message = f"Generation {current} is in service, not {expected}; look again before you activate {number}"
            raise ApiError(409, message, code="generation_mismatch", details=self._now())

    def _check_room(self) -> None:
        """Raises: ApiError 429 if nobody could leave for one more generation."""
        residents = self._generations.residents.values()
        free = self.max_resident - len(residents) + sum(map(self._may_leave, residents))
        if free >= 1 and len(residents) <= self.max_resident:
            return
        holders = [holder(resident, resident.number == self._generations.current) for resident in residents]
        held = "; ".join(f"generation {one['generation']} {one['reason']}" for one in holders)
        message = f"{self.max_resident} generations can be in memory, and none can leave: {held}"
        raise ApiError(
            429, message, code="too_many_generations", headers={"retry-after": "5"}, details={"holders": holders}
        )

    def _may_leave(self, resident: Resident) -> bool:
        return resident.is_idle and not resident.is_pinned and resident.number != self._generations.current

    def _on_idle(self, resident: Resident) -> None:
        if not resident.is_open or self._num_settled > self.max_resident:
            self._tidy_soon()

    @property
    def _num_settled(self) -> int:
        """Residents but for one that an order has just loaded: nobody leaves for it before the order is carried out."""
        return sum(resident.is_open or not resident.orders for resident in self._generations.residents.values())

    def _tidy_soon(self) -> None:
        """Tidy in a task of its own: no order waits for it."""
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy_alone())
            self._tidying.add_done_callback(_report)

    async def _tidy_alone(self) -> None:
        async with self._slots:
            await self._tidy()

    async def _tidy(self) -> None:
        """Free what is closed and idle; past the bound the least recently used too, or close it if it is in use."""
        while (resident := self._next_to_leave()) is not None:
            self._generations.remove(resident)
            await self._loader.unload(resident)
            logger.info("generation %d left memory", resident.number)
        self._close_spare()

    def _next_to_leave(self) -> Resident | None:
        idle = [resident for resident in self._by_last_use() if self._may_leave(resident)]
        closed = [resident for resident in idle if not resident.is_open]
        is_past_bound = self._num_settled > self.max_resident
        return next(iter(closed or (idle if is_past_bound else [])), None)

    def _close_spare(self) -> None:
        """Past the bound with all in use: the least recently used takes no new request and leaves after its last."""
        is_open = [resident for resident in self._by_last_use() if resident.is_open]
        spare = (r for r in is_open if not r.is_pinned and not r.orders and r.number != self._generations.current)
        if len(is_open) > self.max_resident and (leaving := next(spare, None)) is not None:
            leaving.is_open = False

    def _by_last_use(self) -> list[Resident]:
        return sorted(self._generations.residents.values(), key=lambda resident: resident.last_used)

    def _resident(self, number: int) -> Resident:
        resident = self._generations.residents.get(number)
        if resident is None:
            raise ApiError(404, f"Generation {number} is not in memory", code="not_in_memory")
        return resident

    def _now(self) -> dict[str, Any]:
        return {"serving": self._generations.current}

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets


def _report(tidying: "asyncio.Task[None]") -> None:
    if not tidying.cancelled() and (error := tidying.exception()) is not None:
        logger.error("a generation could not be freed: %s", type(error).__name__)
