"""Which generations are in memory, which one serves, what a model name means, and which requests each one still has.

    NAME        the generation in service         NAME@<n>   generation n, if it is in memory
    NAME-base   the base model without experts    no name    the same as NAME

`admit` turns a request's name into one of the last two and holds that generation in memory until the request has ended,
whatever serves by then. The table is vLLM's own (`OpenAIServingModels.lora_requests`, name to `LoRARequest`). All of
this is changed in the event loop only, without waiting in between, so no request ever sees half a change.
"""

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapters.bank import Manifest

from .errors import ApiError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


@dataclass(frozen=True)
class Target:
    """What a request was bound to: the name vLLM knows it by, and its generation (None: the base model)."""

    model: str
    generation: int | None

    @property
    def headers(self) -> dict[str, str]:
        return {"x-seta-generation": "base" if self.generation is None else str(self.generation)}


@dataclass(eq=False)
class Resident:
    """A generation in memory.

    Only an open one takes new requests. One that is neither open nor held by anything is freed (`server.operations`).
    """

    manifest: Manifest
    adapter: "LoRARequest"
    resident_bytes: int
    is_open: bool = False
    is_pinned: bool = False
    last_used: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    """Requests admitted and not yet ended, as the HTTP side sees it."""
    in_engine: dict[object, str] = field(default_factory=dict)
    """vLLM's ids of the requests in the engine: those of a client that left stay until the engine knows."""
    orders: int = 0
    """Orders (activate, pin) under way that need it."""

    @property
    def number(self) -> int:
        return self.manifest.generation

    @property
    def is_idle(self) -> bool:
        return not (self.in_flight or self.in_engine or self.orders)


class Generations:
    """The resident generations of one bank. Use from the event loop only.

    `on_idle` is called whenever a resident's last request has ended.
    """

    def __init__(self, name: str, base_name: str, table: MutableMapping[str, "LoRARequest"]) -> None:
        self.name = name
        self.base_name = base_name
        self.residents: dict[int, Resident] = {}
        self.base_in_flight = 0
        self.num_retired = 0
        self.on_idle: Callable[[Resident], None] = lambda _: None
        self._table = table
        self._by_adapter: dict[int, Resident] = {}
        self._current: int | None = None

    @property
    def current(self) -> int:
        assert self._current is not None, "no generation is in service yet"
        return self._current

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation in service."""
        return self.residents[self.current].manifest

    @property
    def manifests(self) -> dict[int, Manifest]:
        return {number: resident.manifest for number, resident in self.residents.items()}

    @property
    def names(self) -> list[str]:
        """Every model name a client may use."""
        numbers = sorted(number for number, resident in self.residents.items() if resident.is_open)
        return [self.name, *map(self.pinned_name, numbers), self.base_name]

    def pinned_name(self, number: int) -> str:
        return f"{self.name}@{number}"

    def put(self, resident: Resident) -> None:
        """It is in memory; until it is opened nobody can name it."""
        assert resident.number not in self.residents
        self.residents[resident.number] = resident
        self._by_adapter[resident.adapter.lora_int_id] = resident
        self._table[resident.adapter.lora_name] = resident.adapter

    def remove(self, resident: Resident) -> None:
        """It is about to leave memory."""
        assert resident.is_idle and resident.number != self._current
        self.num_retired += 1
        del self.residents[resident.number]
        del self._by_adapter[resident.adapter.lora_int_id]
        del self._table[resident.adapter.lora_name]

    def switch(self, number: int) -> None:
        """Serve a generation that is in memory: from here on new requests are bound to it."""
        resident = self.residents[number]
        resident.is_open = True
        resident.last_used = time.monotonic()
        self._current = number

    def resolve(self, model: object) -> Target:
        """Raises: ApiError 404 for a name nobody serves, 400 for what is not a name."""
        if model is None or model == "" or model == self.name:
            return Target(self.pinned_name(self.current), self.current)
        if not isinstance(model, str):
            raise ApiError(400, "model must be a string", param="model", code="invalid_value")
        if model == self.base_name:
            return Target(model, None)
        for number, resident in self.residents.items():
            if resident.is_open and model == self.pinned_name(number):
                return Target(model, number)
        raise ApiError(
            404,
            f"The model {_shown(model)} does not exist; this server has: {', '.join(self.names)}",
            param="model",
            code="model_not_found",
        )

    @contextmanager
    def admit(self, model: object) -> Iterator[Target]:
        """Bind a request to a generation until the block ends. Raises: as `resolve`."""
        target = self.resolve(model)
        if target.generation is None:
            self.base_in_flight += 1
            try:
                yield target
            finally:
                self.base_in_flight -= 1
            return
        resident = self.residents[target.generation]
        resident.in_flight += 1
        resident.last_used = time.monotonic()
        try:
            yield target
        finally:
            resident.in_flight -= 1
            self.look(resident)

    @contextmanager
    def in_engine(self, adapter: "LoRARequest | None", request_id: str) -> Iterator[None]:
        """The engine works on a request until the block ends, and has then been told if it was cut short."""
        resident = None if adapter is None else self._by_adapter.get(adapter.lora_int_id)
        if resident is None:
            yield
            return
        key = object()  # ids may repeat: a client can choose its own
        resident.in_engine[key] = request_id
        try:
            yield
        finally:
            del resident.in_engine[key]
            self.look(resident)

    def number_of(self, adapter: "LoRARequest | None") -> int | None:
        """The generation behind an adapter in memory; None for the base model."""
        resident = None if adapter is None else self._by_adapter.get(adapter.lora_int_id)
        return None if resident is None else resident.number

    def look(self, resident: Resident) -> None:
        """Tell `on_idle` if nothing holds it any more."""
        if resident.is_idle:
            self.on_idle(resident)


def _shown(model: str) -> str:
    return repr(model if len(model) <= 100 else model[:100] + "…")
