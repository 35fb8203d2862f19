"""Which request runs next: bounded queues, fair between keys.

A request comes in (`enter`), has its body read, waits its turn (`wait_turn`), runs, and leaves (`leave`). Until its
turn it counts as queued, also while a slow client is still sending it: so requests that hold memory are bounded by key
and in all, and what is over the bound is refused with 429 at once. Places are counted in sequences (answers generated
side by side), of which a request with n=4 takes four.

The next place goes to the key with the fewest places among those that wait, the one that was served longest ago if
there are several, and within a key to the request that came first. If that request needs more places than are free, the
others wait with it: small ones must not starve a large one. One process, one event loop, no locks.
"""

import asyncio
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .config import ServeConfig
from .errors import ApiError

Reason = Literal["queue_full", "key_queue_full"]
_MAX_RETRY_SECONDS = 60
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Bounds:
    """places: sequences that run at once. queued: requests that wait beyond them. None: no bound of its own."""

    places: int
    places_per_key: int | None
    queued: int
    queued_per_key: int


def bounds(config: ServeConfig, max_num_seqs: int) -> Bounds:
    """`max_num_seqs`: a replica's batch. By default a quarter more are handed to it, so that the next are at hand."""
    places = config.max_running or config.data_parallel_size * (max_num_seqs + max(1, max_num_seqs // 4))
    return Bounds(places, config.max_running_per_key, config.max_queued, config.max_queued_per_key)


@dataclass
class _Key:
    """What one key has in the house."""

    queued: int = 0
    places: int = 0
    waiting: "deque[Visit]" = field(default_factory=deque)


class Visit:
    """One request from `enter` to `leave`."""

    def __init__(self, admission: "Admission", tenant: str | None) -> None:
        self.tenant = tenant
        self.places = 0
        self.turn: asyncio.Future[None] | None = None
        self.began: float | None = None
        self._admission = admission

    async def wait_turn(self, places: int) -> None:
        """Return once the request may run. A cancelled wait must be followed by `leave`, like any other end."""
        await self._admission._wait_turn(self, places)

    def leave(self) -> None:
        """Give back whatever the visit holds, its place in the queue included. Any number of times."""
        self._admission._leave(self)


class Admission:
    """The house. Without keys there is one tenant, None, and only the bounds for all apply to it."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        self.refused: Counter[Reason] = Counter()
        self._clock = clock
        self._keys: dict[str | None, _Key] = {}  # those with something in the house
        self._served: dict[str | None, int] = {}  # when each key was served last, in the order of servings
        self._inside: set[Visit] = set()
        self._order = itertools.count(1)
        self._mean_seconds = 1.0

    @property
    def queued(self) -> int:
        """Requests that have not got their turn."""
        return sum(key.queued for key in self._keys.values())

    @property
    def places_taken(self) -> int:
        return sum(key.places for key in self._keys.values())

    def enter(self, tenant: str | None) -> Visit:
        """Raises: ApiError 429 if too many are queued, of this key or in all."""
        key = self._keys.get(tenant, _Key())
        free = self.bounds.places - self.places_taken  # who comes now may be about to take one of these
        free_for_key = min(free, self._most(tenant) - key.places)
        if tenant is not None and key.queued >= self.bounds.queued_per_key + free_for_key:
            raise self._refusal("key_queue_full", f"{key.queued} requests of this key are waiting already")
        if self.queued >= self.bounds.queued + free:
            raise self._refusal("queue_full", "The server's queue is full")
        visit = Visit(self, tenant)
        self._keys.setdefault(tenant, _Key()).queued += 1
        self._inside.add(visit)
        return visit

    async def _wait_turn(self, visit: Visit, places: int) -> None:
        assert visit in self._inside and visit.turn is None
        key = self._keys[visit.tenant]
        visit.places = min(places, self._most(visit.tenant))  # a request larger than the house gets the whole house
        visit.turn = asyncio.get_running_loop().create_future()
        key.waiting.append(visit)
        self._hand_out()
        await visit.turn

    def _leave(self, visit: Visit) -> None:
        if visit not in self._inside:
            return
        self._inside.remove(visit)
        key = self._keys[visit.tenant]
        if visit.began is not None:
            key.places -= visit.places
            self._mean_seconds += _SMOOTHING * (self._clock() - visit.began - self._mean_seconds)
        else:
            key.queued -= 1
            if visit in key.waiting:
                key.waiting.remove(visit)
        if not key.queued and not key.places:
            del self._keys[visit.tenant]
        self._hand_out()

    def _hand_out(self) -> None:
        while (visit := self._next()) is not None:
            assert visit.turn is not None
            key = self._keys[visit.tenant]
            is_cancelled = visit.turn.cancelled()  # it is about to leave
            if not is_cancelled and self.places_taken + visit.places > self.bounds.places:
                return
            key.waiting.popleft()
            if is_cancelled:
                continue
            key.queued -= 1
            key.places += visit.places
            self._served[visit.tenant] = next(self._order)
            visit.began = self._clock()
            visit.turn.set_result(None)

    def _next(self) -> Visit | None:
        """The first request of the key that is next, among the keys below their own bound."""
        able = [
            (key.places, self._served.get(tenant, 0), key.waiting[0])
            for tenant, key in self._keys.items()
            if key.waiting and key.places + key.waiting[0].places <= self._most(tenant)
        ]
        return min(able, key=lambda entry: entry[:2], default=(0, 0, None))[2]

    def _most(self, tenant: str | None) -> int:
        """Places that one key may hold."""
        own = self.bounds.places_per_key
        return self.bounds.places if own is None or tenant is None else min(own, self.bounds.places)

    def _refusal(self, reason: Reason, message: str) -> ApiError:
        self.refused[reason] += 1
        seconds = self._retry_seconds()
        message = f"{message}; try again in {seconds} s"
        return ApiError(429, message, code=reason, headers={"retry-after": str(seconds)})

    def _retry_seconds(self) -> int:
        """About when the queue of now will have been served."""
        running = max(1, len(self._inside) - self.queued)
        return max(1, min(_MAX_RETRY_SECONDS, math.ceil(self._mean_seconds * self.queued / running)))
