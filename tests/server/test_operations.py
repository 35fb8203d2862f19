"""Orders against a bank on disk and an engine that is a set of adapter ids: each happens, or changes nothing."""

import asyncio
from typing import Any

import pytest

from adapters.bank import Bank, BankConflict, BankCorrupt, BankIOError, BankNotFound
from server.errors import ApiError
from server.operations import Operations
from tests.server.house import House
from tests.server.orders import refused, run


def test_it_starts_with_what_current_says(house: House) -> None:
    async def nothing(operations: Operations) -> None:
        pass

    run(house, nothing)
    assert house.state == (4, 4, ["demo@4"], [4])


def test_activate(house: House) -> None:
    async def story(operations: Operations) -> None:
        change = await operations.activate(5, expected=4)
        assert (change.serving, change.previous) == (5, 4)
        assert house.ask() == 5  # at once

    run(house, story)
    assert house.state == (5, 5, ["demo@4", "demo@5"], [4, 5])


def test_activating_what_serves_changes_nothing_even_if_it_is_a_repetition(house: House) -> None:
    async def story(operations: Operations) -> None:
        for _ in range(2):
            await operations.activate(5, expected=4)
        assert house.loader.loads == [4, 5]
        house.bank.set_current(3)  # somebody's `seta bank use`
        await operations.activate(5)

    run(house, story)
    assert house.state[:2] == (5, 5)


def test_a_mismatch_changes_nothing(house: House) -> None:
    error = refused(house, lambda operations: operations.activate(5, expected=3))
    assert (error.status, error.code, error.details) == (409, "generation_mismatch", {"serving": 4})
    assert house.state == (4, 4, ["demo@4"], [4])
    assert house.loader.loads == [4]


FAILURES: dict[str, tuple[Exception, type[Exception]]] = {
    "corrupt": (BankCorrupt("its bytes were altered"), BankCorrupt),
    "engine": (RuntimeError("the engine is dead"), RuntimeError),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_load_that_fails_changes_nothing(house: House, case: str) -> None:
    error, kind = FAILURES[case]

    async def story(operations: Operations) -> None:
        await operations.activate(3)
        await operations.activate(4)
        house.loader.fails = error
        await operations.activate(5)

    with pytest.raises(kind):
        run(house, story)
    assert house.state == (4, 4, ["demo@3", "demo@4"], [3, 4])


def test_a_generation_the_bank_does_not_have(house: House) -> None:
    with pytest.raises(BankNotFound, match=r"00009.json does not exist"):
        run(house, lambda operations: operations.activate(9))
    assert house.state == (4, 4, ["demo@4"], [4])


def test_if_current_cannot_be_written_nothing_has_changed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what is in memory: generation 3 was not pushed out by one that never served."""

    async def story(operations: Operations) -> None:
        await operations.activate(3)
        await operations.activate(4)
        monkeypatch.setattr(house.bank, "write_current", fail)
        with pytest.raises(BankIOError):
            await operations.activate(5)
        await operations.settle()

    def fail(generation: int) -> None:
        assert "demo@5" not in house.generations.names
        raise BankIOError("CURRENT cannot be written (No space left on device)")

    run(house, story)
    assert house.state == (4, 4, ["demo@3", "demo@4"], [3, 4])


def test_current_is_written_before_anybody_is_bound_to_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    served = []
    write = house.bank.write_current

    def note(generation: int) -> None:
        write(generation)
        served.append((generation, house.generations.current))

    monkeypatch.setattr(house.bank, "write_current", note)
    run(house, lambda operations: operations.activate(5))
    assert served == [(5, 4)]


def test_a_generation_deleted_from_the_bank_is_not_made_current(house: House) -> None:
    async def story(operations: Operations) -> None:
        await operations.pin(5)
        (house.bank.root / "generations/00005.json").unlink()
        with pytest.raises(BankNotFound):
            await operations.activate(5)

    run(house, story)
    assert house.state == (4, 4, ["demo@4", "demo@5"], [4, 5])


def test_a_generation_replaced_in_the_bank_is_not_made_current(house: House) -> None:
    async def story(operations: Operations) -> None:
        await operations.pin(5)
        other = house.bank.manifest(5).model_copy(update={"settings": {"seed": 7}})
        (house.bank.root / "generations/00005.json").write_bytes(other.to_bytes())
        with pytest.raises(BankConflict, match="other contents in the bank than in memory"):
            await operations.activate(5)

    run(house, story)
    assert house.state[:2] == (4, 4)


class TestRollback:
    def test_to_what_served_before(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            await operations.activate(2)
            await operations.activate(5)
            assert (await operations.rollback()).serving == 2
            assert (await operations.rollback()).serving == 4
            assert (await operations.rollback()).serving == 3  # its parent: nothing served before it in this process

        run(house, story)
        assert house.state[:2] == (3, 3)

    def test_after_a_restart_to_the_parent(self, house: House) -> None:
        change = run(house, lambda operations: operations.rollback(expected=4))
        assert (change.serving, change.previous) == (3, 4)
        assert house.state[:2] == (3, 3)

    def test_a_repetition_does_not_go_back_further(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            await operations.rollback(expected=4)
            await operations.rollback(expected=4)

        assert refused(house, story).code == "generation_mismatch"
        assert house.state[:2] == (3, 3)

    def test_nothing_is_before_generation_0(self, bank: Bank) -> None:
        house = House(bank, current=0)
        assert refused(house, lambda operations: operations.rollback()).code == "nothing_to_roll_back"

    def test_a_rollback_that_fails_can_be_tried_again(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            await operations.activate(2)
            await operations.activate(4)
            await operations.activate(5)
            house.loader.fails = BankCorrupt("altered")
            await operations.settle()
            operations.retire(4)
            await operations.settle()
            with pytest.raises(BankCorrupt):
                await operations.rollback()
            house.loader.fails = None
            assert (await operations.rollback()).serving == 4

        run(house, story)
        assert house.state[:2] == (4, 4)


class TestTwoAtOnce:
    def test_the_same_generation_is_loaded_once(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            changes = await asyncio.gather(*(operations.activate(5, expected=4) for _ in range(3)))
            assert sorted(change.previous for change in changes) == [4, 5, 5]

        run(house, story)
        assert (house.loader.loads, house.state[:2]) == ([4, 5], (5, 5))

    def test_of_two_that_expect_the_same_one_is_refused(self, bank: Bank) -> None:
        house = House(bank, max_resident=3)

        async def story(operations: Operations) -> list[Any]:
            orders = (operations.activate(number, expected=4) for number in (3, 5))
            return await asyncio.gather(*orders, return_exceptions=True)

        first, second = run(house, story)
        assert (first.serving, second.code) == (3, "generation_mismatch")
        assert house.state[:2] == (3, 3)

    def test_a_rollback_does_not_wait_for_a_slow_load_which_then_changes_nothing(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            await operations.activate(3)
            house.loader.gate = asyncio.Event()
            slow = asyncio.create_task(operations.activate(5))
            while operations.loading != 5:
                await asyncio.sleep(0)
            assert (await operations.rollback()).serving == 4
            house.loader.gate.set()
            with pytest.raises(ApiError) as caught:
                await slow
            assert (caught.value.code, caught.value.details) == ("superseded", {"serving": 4})

        run(house, story)
        assert house.state == (4, 4, ["demo@3", "demo@4"], [3, 4])


def test_an_order_whose_sender_is_gone_leaves_nothing_behind(house: House) -> None:
    async def story(operations: Operations) -> None:
        house.loader.gate = asyncio.Event()
        order = asyncio.create_task(operations.activate(5))
        while operations.loading != 5:
            await asyncio.sleep(0)
        order.cancel()
        with pytest.raises(asyncio.CancelledError):
            await order
        house.loader.gate = None
        await operations.activate(3)

    run(house, story)
    assert house.state == (3, 3, ["demo@3", "demo@4"], [3, 4])
