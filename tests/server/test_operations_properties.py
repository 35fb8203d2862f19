"""Any sequence of orders, requests and failures: what must hold, holds after every step."""

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.bank import Bank, BankCorrupt, BankError, BankIOError, BankNotFound, Manifest
from server.errors import ApiError
from server.generations import Generations
from server.operations import Operations
from tests.server.house import FakeLoader

NUM_GENERATIONS, MAX_RESIDENT = 6, 3
NUMBERS = st.integers(0, NUM_GENERATIONS)  # the last one does not exist
STEPS = st.one_of(
    st.tuples(st.just("activate"), NUMBERS, st.none() | NUMBERS),
    st.tuples(st.just("rollback"), st.none() | NUMBERS),
    st.tuples(st.just("pin"), NUMBERS),
    st.tuples(st.just("unpin"), NUMBERS),
    st.tuples(st.just("retire"), NUMBERS),
    st.tuples(st.just("request"), st.sampled_from(["demo", *(f"demo@{n}" for n in range(NUM_GENERATIONS))])),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("break"), st.sampled_from(["load", "current", "nothing"])),
    st.tuples(st.just("pass"), st.integers(1, 5)),
)


class MemoryBank:
    """A bank's manifests and its CURRENT, in memory."""

    def __init__(self, manifests: dict[int, Manifest], current: int) -> None:
        self.manifests, self.value, self.is_broken = manifests, current, False

    def manifest(self, number: int | None = None) -> Manifest:
        try:
            return self.manifests[self.value if number is None else number]
        except KeyError:
            raise BankNotFound("no such generation") from None

    def point_to(self, manifest: Manifest) -> None:
        if self.is_broken:
            raise BankIOError("CURRENT cannot be written")
        self.value = manifest.generation


class World:
    """The orders under way and the requests in flight."""

    def __init__(self, bank: MemoryBank) -> None:
        self.bank: Any = bank
        self.loader = FakeLoader(MAX_RESIDENT + 1)
        self.generations = Generations("demo", "demo-base", {})
        self.operations = Operations(self.generations, self.bank, self.loader, MAX_RESIDENT)
        self.requests: list[tuple[int, AbstractContextManager[Any]]] = []
        self.orders: list[asyncio.Task[Any]] = []

    async def step(self, what: str, *arguments: Any) -> None:
        if what in ("activate", "rollback", "pin"):
            self.orders.append(asyncio.create_task(getattr(self.operations, what)(*arguments)))
        elif what in ("unpin", "retire"):
            self.try_now(what, *arguments)
        elif what == "request":
            self.begin(*arguments)
        elif what == "end" and self.requests:
            self.requests.pop(arguments[0] % len(self.requests))[1].__exit__(None, None, None)
        elif what == "break":
            self.loader.fails = BankCorrupt("altered") if arguments[0] == "load" else None
            self.bank.is_broken = arguments[0] == "current"
        elif what == "pass":
            for _ in range(arguments[0]):
                await asyncio.sleep(0)

    def try_now(self, what: str, number: int) -> None:
        try:
            getattr(self.operations, what)(number)
        except ApiError as error:
            assert error.code in ("not_in_memory", "in_service", "pinned", "busy")

    def begin(self, model: str) -> None:
        context = self.generations.admit(model)
        try:
            target = context.__enter__()
        except ApiError as error:
            assert error.code == "model_not_found"
            return
        assert target.generation is not None
        self.requests.append((target.generation, context))

    async def finish(self) -> None:
        """All requests end, all orders come to theirs; each either did what it was asked or was refused by name."""
        for _, context in self.requests:
            context.__exit__(None, None, None)
        self.requests = []
        for result in await asyncio.gather(*self.orders, return_exceptions=True):
            assert not isinstance(result, BaseException) or isinstance(result, (ApiError, BankError)), repr(result)
        await self.operations.settle()

    def check(self) -> None:
        generations, held = self.generations, {one.number for one in self.loader.held.values()}
        assert set(generations.residents) <= held, "a generation is named that the engine does not hold"
        assert len(held) <= MAX_RESIDENT + 1
        assert {number for number, _ in self.requests} <= held, "a running request lost its generation"
        assert generations.current in generations.residents
        assert generations.residents[generations.current].is_open
        assert generations.resolve("demo").generation == generations.current


@pytest.fixture(scope="module")
def manifests(bank_template: Path) -> dict[int, Manifest]:
    bank = Bank.open(bank_template)
    return {number: bank.manifest(number) for number in bank.generations()}


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(STEPS, max_size=40))
def test_whatever_happens(manifests: dict[int, Manifest], steps: list[tuple[Any, ...]]) -> None:
    async def story() -> World:
        world = World(MemoryBank(manifests, current=4))
        await world.operations.start()
        for step in steps:
            await world.step(*step)
            world.check()
        await world.finish()
        world.check()
        return world

    world = asyncio.run(story())
    residents = world.generations.residents.values()
    assert world.bank.value == world.generations.current, "a restart would serve something else"
    assert len(residents) <= MAX_RESIDENT
    assert all(one.is_open and one.is_idle for one in residents), "a generation that nobody needs stayed in memory"
    assert len(world.loader.held) == len(residents)
