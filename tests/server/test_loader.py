"""What the server asks the engine's worker to load a generation, and what it makes of the answers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters.bank import Bank, BankCorrupt
from server.errors import ApiError
from server.loader import Loader

READY = {"state": "ready", "resident_bytes": 500}
LOADING = {"state": "loading"}


class Engine:
    """Plays the worker: `answers` are what it says about a load, one after another; the last one stays."""

    def __init__(self, *answers: dict[str, Any], add_fails: bool = False) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answers = list(answers)
        self._add_fails = add_fails

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> Any:
        self.calls.append((method, *args))
        if method != "seta_preparation":
            return [None, None]
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [answer, READY]

    async def add_lora(self, lora_request: Any) -> bool:
        self.calls.append(("add_lora", lora_request.lora_int_id))
        if self._add_fails:
            raise RuntimeError("the engine is dead")
        self.added = lora_request
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        self.calls.append(("remove_lora", lora_id))
        return True


def loader(engine: Engine) -> Loader:
    return Loader(engine, Path("/banks/mine"), "demo@{}".format)


def test_a_generation_is_prepared_then_put_into_its_slot(bank: Bank) -> None:
    engine, manifest = Engine(LOADING, LOADING, READY), bank.manifest(3)
    resident = asyncio.run(loader(engine).load(manifest))
    assert engine.calls == [
        ("seta_prepare", 1, 3, manifest.digest),
        *[("seta_preparation", 1)] * 3,
        ("add_lora", 1),
    ]
    assert (engine.added.lora_name, engine.added.lora_path) == (
        "demo@3",
        f"/banks/mine/generations/00003.json#{manifest.digest}",
    )
    assert (resident.number, resident.resident_bytes, resident.is_open) == (3, 1000, False)


def test_an_adapter_id_is_never_used_twice(bank: Bank) -> None:
    engine = Engine(READY)

    async def story() -> list[int]:
        one = loader(engine)
        first = await one.load(bank.manifest(3))
        await one.unload(first)
        return [first.adapter.lora_int_id, (await one.load(bank.manifest(3))).adapter.lora_int_id]

    assert asyncio.run(story()) == [1, 2]
    assert ("remove_lora", 1) in engine.calls


@pytest.mark.parametrize(
    ("error", "kind"), [("BankCorrupt", BankCorrupt), ("OSError", ApiError), ("Bank", ApiError), ("nothing", ApiError)]
)
def test_a_failure_is_the_workers_and_nothing_stays(bank: Bank, error: str, kind: type[Exception]) -> None:
    engine = Engine(LOADING, {"state": "failed", "error": error, "message": "its bytes were altered"})
    with pytest.raises(kind, match="its bytes were altered"):
        asyncio.run(loader(engine).load(bank.manifest(3)))
    assert engine.calls[-2:] == [("seta_discard", 1), ("remove_lora", 1)]
    assert not [call for call in engine.calls if call[0] == "add_lora"]


def test_a_slot_that_cannot_be_filled_leaves_nothing(bank: Bank) -> None:
    engine = Engine(READY, add_fails=True)
    with pytest.raises(RuntimeError, match="dead"):
        asyncio.run(loader(engine).load(bank.manifest(3)))
    assert engine.calls[-2:] == [("seta_discard", 1), ("remove_lora", 1)]


def test_a_load_that_is_called_off_is_forgotten(bank: Bank) -> None:
    engine = Engine(LOADING)

    async def story() -> None:
        load = asyncio.create_task(loader(engine).load(bank.manifest(3)))
        while ("seta_preparation", 1) not in engine.calls:
            await asyncio.sleep(0)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load

    asyncio.run(story())
    assert engine.calls[-2:] == [("seta_discard", 1), ("remove_lora", 1)]
