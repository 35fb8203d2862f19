"""Bringing a generation into the engine's memory and out of it again, without a pause for the requests in between.

The worker reads, verifies and packs in a thread beside its steps and is asked now and then how far it is; `add_lora`
then only puts the finished generation into a slot (`seta_runtime.preparation`).
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import adapters.bank
from adapters.bank import BankError, Manifest
from seta_runtime.resident import AdapterPath

from .errors import ApiError
from .generations import Resident

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

_FIRST_WAIT_SECONDS, _LAST_WAIT_SECONDS = 0.01, 0.25


class Engine(Protocol):
    """What of vLLM's `AsyncLLM` is needed here."""

    async def add_lora(self, lora_request: "LoRARequest") -> Any: ...

    async def remove_lora(self, lora_id: int) -> Any: ...

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> Any: ...


class Loader:
    """`load` and `unload`, for one engine and one bank. Adapter ids are never used twice, so two loads of the same
    number can never be mistaken for one another."""

    def __init__(self, engine: Engine, bank_root: Path, name_of: Callable[[int], str]) -> None:
        self._engine = engine
        self._bank_root = bank_root
        self._name_of = name_of
        self._ids = itertools.count(1)  # vLLM reserves 0

    async def load(self, manifest: Manifest) -> Resident:
        """The generation, in one of the engine's slots. Raises: a BankError; nothing of it stays then."""
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest(
            lora_name=self._name_of(manifest.generation),
            lora_int_id=next(self._ids),
            lora_path=str(AdapterPath.of(self._bank_root, manifest)),
        )
        number = adapter.lora_int_id
        try:
            await self._ask("seta_prepare", number, manifest.generation, manifest.digest)
            resident_bytes = await self._until_ready(number)
            await self._engine.add_lora(adapter)
        except BaseException:  # also when the order is called off
            with contextlib.suppress(Exception):  # an engine that is dead has forgotten it anyway
                await asyncio.shield(self._forget(number))
            raise
        return Resident(manifest, adapter, resident_bytes)

    async def _forget(self, number: int) -> None:
        """Of replicas some may have put it into a slot already, and some failed: afterwards none has it."""
        await self._ask("seta_discard", number)
        await self._engine.remove_lora(number)

    async def unload(self, resident: Resident) -> None:
        """Free its memory. No request may need it any more."""
        await self._engine.remove_lora(resident.adapter.lora_int_id)

    async def _until_ready(self, number: int) -> int:
        wait = _FIRST_WAIT_SECONDS
        while True:
            workers: list[dict[str, Any]] = await self._ask("seta_preparation", number)
            for worker in workers:
                if worker["state"] == "failed":
                    raise _error(worker)
            if all(worker["state"] == "ready" for worker in workers):
                return sum(int(worker["resident_bytes"]) for worker in workers)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LAST_WAIT_SECONDS)

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self._engine.collective_rpc(method, args=args)


def _error(worker: dict[str, Any]) -> Exception:
    """The worker's exception again: a bank's own, or one whose text is in the log only."""
    kind = getattr(adapters.bank, worker["error"], None)
    if isinstance(kind, type) and issubclass(kind, BankError):
        return kind(worker["message"])
    return ApiError(500, f"The generation was not loaded: {worker['message']}", code="load_failed")
