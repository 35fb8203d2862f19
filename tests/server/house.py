"""A server without an engine: a bank on disk, generations, orders, and a loader that only notes what it is told."""

import asyncio
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from adapters.bank import Bank, Manifest
from server.activations import MeteredOperations
from server.admission import Admission, Bounds
from server.generations import Generations, Resident
from server.inventory import Inventory
from server.polled import Polled
from server.routing_counts import RoutingCounts
from server.service import Administration, Service, Serving
from server.uploads import Uploads
from seta_runtime.stats import ENTROPY_BUCKETS, PROBABILITY_BUCKETS

TASKS = ("alpha", "beta", "gamma", "delta", "epsilon")
MAX_UPLOAD_BYTES = 1 << 20
COUNTS = {
    "tokens_by_expert": {"alpha.unique": 30, "gamma.unique": 10, "long.gone": 7},
    "base_tokens": 60,
    "routed_tokens": 40,
    "generations": [
        {
            "adapter_id": id,
            "tokens_by_task": {"alpha": 20, "gamma": 5},
            "base_tokens": 30,
            "entropy": {"counts": [10, 45] + [0] * (len(ENTROPY_BUCKETS) - 1), "sum": 0.4},
            "probability": {"counts": [5, 20] + [0] * (len(PROBABILITY_BUCKETS) - 1), "sum": 24.0},
        }
        for id in (1, 2, 99)
    ],
}


class FakeLoader:
    """Stands for the engine: what is in its slots, and how a load goes (`fails`, or waits for `gate`)."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: dict[int, Resident] = {}
        self.loads: list[int] = []
        self.fails: Exception | None = None
        self.gate: asyncio.Event | None = None
        self._next_id = 1

    async def load(self, manifest: Manifest) -> Resident:
        self.loads.append(manifest.generation)
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        assert len(self.held) < self.slots, "the engine would evict somebody"
        adapter: Any = SimpleNamespace(lora_name=f"demo@{manifest.generation}", lora_int_id=self._next_id)
        self._next_id += 1
        resident = Resident(manifest, adapter, 1000)
        self.held[adapter.lora_int_id] = resident
        return resident

    async def unload(self, resident: Resident) -> None:
        assert resident.is_idle, "a request still needs it"
        await asyncio.sleep(0)
        del self.held[resident.adapter.lora_int_id]


class House:
    """A bank of generations 0 to 5, of which at most `max_resident` are in memory; `current` serves."""

    def __init__(self, bank: Bank, max_resident: int = 2, current: int = 4) -> None:
        self.bank = bank
        self.bank.set_current(current)
        self.loader = FakeLoader(max_resident + 1)
        self.generations = Generations("demo", "demo-base", {})
        self.operations = MeteredOperations(self.generations, self.bank, self.loader, max_resident)
        self.requests = ExitStack()
        counts = RoutingCounts(_counts)
        inventory = Inventory(bank, self.generations, self.operations, counts)
        uploads = Uploads(bank, MAX_UPLOAD_BYTES, patience_seconds=0.5)
        administration = Administration(bank, self.operations, inventory, uploads)
        engine: Any = SimpleNamespace(errored=False)
        handlers: Any = None
        config: Any = SimpleNamespace(client_seconds=5.0)
        admission = Admission(Bounds(4, None, 4, 4))
        size = Polled(_size, 0, "the bank's size")
        serving = Serving(engine, handlers, self.generations, counts, size, admission, administration)
        self.service = Service(config, serving=serving)

    def ask(self, model: str = "demo") -> int | None:
        """A request that stays until `requests` is closed; the generation it was bound to."""
        return self.requests.enter_context(self.generations.admit(model)).generation

    @property
    def state(self) -> tuple[int, int, list[str], list[int]]:
        """What serves, what CURRENT says, what can be named, what is in the engine."""
        held = sorted(resident.number for resident in self.loader.held.values())
        return self.generations.current, self.bank.current(), self.generations.names[1:-1], held


async def _counts(method: str) -> list[Any]:
    return [COUNTS if method == "seta_stats" else []]


async def _size() -> int:
    return 123456
