"""Orders against a bank on disk and an engine that is a set of adapter ids: each happens, or changes nothing."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from adapters.bank import Bank, BankConflict, BankCorrupt, BankIOError, BankNotFound
from server.errors import ApiError
from server.operations import Operations
from tests.server.house import House


def run(house: House, story: Callable[[Operations], Awaitable[Any]]) -> Any:
    """Start the house, run the story, wait until all that can leave memory has left it."""

    async def all_of_it() -> Any:
        await house.operations.start()
        try:
            return await story(house.operations)
        finally:
            await house.operations.settle()

    return asyncio.run(all_of_it())


def refused(house: House, story: Callable[[Operations], Awaitable[Any]]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        run(house, story)
    return caught.value


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


class TestBound:
    def test_the_least_recently_used_idle_one_leaves(self, bank: Bank) -> None:
        house = House(bank, max_resident=3)

        async def story(operations: Operations) -> None:
            await operations.activate(2)
            await operations.activate(3)
            house.ask("demo@4")
            house.requests.close()  # 4 was used after 2
            await operations.activate(5)

        run(house, story)
        assert house.state == (5, 5, ["demo@3", "demo@4", "demo@5"], [3, 4, 5])

    def test_what_is_in_use_stays_and_the_next_is_refused(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            assert house.ask() == 4
            await operations.activate(5)
            adapter = house.generations.residents[4].adapter
            house.requests.enter_context(house.generations.in_engine(adapter, "chatcmpl-7"))
            await operations.activate(3)

        error = refused(house, story)
        assert (error.status, error.code, error.headers) == (429, "too_many_generations", {"retry-after": "5"})
        four, five = error.details["holders"]
        assert four == {
            "generation": 4,
            "reason": "has 1 request in flight (chatcmpl-7)",
            "in_flight": 1,
            "requests": ["chatcmpl-7"],
        }
        assert (five["generation"], five["reason"]) == (5, "is in service")
        assert "generation 4 has 1 request in flight (chatcmpl-7); generation 5 is in service" in error.message
        assert house.state == (5, 5, ["demo@4", "demo@5"], [4, 5])

    def test_a_refusal_names_a_few_of_many_requests_and_prints_no_control_character(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            for _ in range(5):
                house.ask()
            await operations.activate(5)
            adapter = house.generations.residents[4].adapter
            for id in ("chatcmpl-\x1b[2J\n" + "x" * 100, "d", "e", "f", "g"):
                house.requests.enter_context(house.generations.in_engine(adapter, id))
            await operations.activate(3)

        message = refused(house, story).message
        named = "chatcmpl-\\x1b[2J\\n" + "x" * 46
        assert f"generation 4 has 5 requests in flight ({named}, d, e, 2 more); " in message

    def test_room_comes_with_the_end_of_the_request(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            house.ask()
            await operations.activate(5)
            house.requests.close()
            await operations.activate(3)

        run(house, story)
        assert house.state == (3, 3, ["demo@3", "demo@5"], [3, 5])

    def test_a_request_that_comes_during_the_load_makes_its_generation_wait_not_fail(self, house: House) -> None:
        """The one that was to leave is in use by the time it should: it is closed, and leaves after its last one."""

        async def story(operations: Operations) -> None:
            await operations.activate(3)
            house.loader.gate = asyncio.Event()
            order = asyncio.create_task(operations.activate(5))
            while house.loader.loads != [4, 3, 5]:
                await asyncio.sleep(0)
            house.ask("demo@4")
            house.ask("demo@3")
            house.loader.gate.set()
            await order
            await operations.settle()
            assert house.state == (5, 5, ["demo@3", "demo@5"], [3, 4, 5])
            with pytest.raises(ApiError, match="generation 4 has 1 request in flight"):
                await operations.activate(2)
            house.requests.close()

        run(house, story)
        assert house.state == (5, 5, ["demo@3", "demo@5"], [3, 5])

    def test_pinned_ones_stay(self, bank: Bank) -> None:
        house = House(bank, max_resident=3)

        async def story(operations: Operations) -> None:
            await operations.pin(1)
            await operations.activate(2)
            await operations.activate(3)
            await operations.settle()
            assert house.state == (3, 3, ["demo@1", "demo@2", "demo@3"], [1, 2, 3])
            await operations.pin(2)
            with pytest.raises(ApiError, match="generation 1 is pinned; generation 2 is pinned"):
                await operations.activate(5)
            operations.unpin(1)
            await operations.activate(5)

        run(house, story)
        assert house.state == (5, 5, ["demo@2", "demo@3", "demo@5"], [2, 3, 5])


class TestRetire:
    def test_an_idle_one_is_freed(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            await operations.activate(5)
            assert operations.retire(4) == 0

        run(house, story)
        assert house.state == (5, 5, ["demo@5"], [5])

    def test_one_in_use_is_freed_after_its_last_request(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            house.ask()
            await operations.activate(5)
            assert operations.retire(4) == 1
            await operations.settle()
            assert house.state == (5, 5, ["demo@5"], [4, 5])
            house.requests.close()
            for _ in range(10):  # by itself: nobody has to order anything
                await asyncio.sleep(0)
            assert house.state == (5, 5, ["demo@5"], [5])

        run(house, story)

    def test_not_what_is_just_going_live(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        write, may_write = house.bank.write_current, threading.Event()

        def wait(generation: int) -> None:
            may_write.wait(10)
            write(generation)

        async def story(operations: Operations) -> None:
            monkeypatch.setattr(house.bank, "write_current", wait)
            order = asyncio.create_task(operations.activate(5))
            while 5 not in house.generations.residents:
                await asyncio.sleep(0)
            with pytest.raises(ApiError) as caught:
                operations.retire(5)
            may_write.set()
            await order
            assert caught.value.code == "busy"

        run(house, story)
        assert house.state == (5, 5, ["demo@4", "demo@5"], [4, 5])

    def test_activating_it_meanwhile_takes_it_back(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            house.ask()
            await operations.activate(5)
            operations.retire(4)
            await operations.activate(4)
            house.requests.close()

        run(house, story)
        assert house.state == (4, 4, ["demo@4", "demo@5"], [4, 5])
        assert house.loader.loads == [4, 5]

    def test_not_what_serves_nor_what_is_pinned_nor_what_is_not_there(self, house: House) -> None:
        async def story(operations: Operations) -> list[str | None]:
            await operations.pin(3)
            codes = []
            for number in (4, 3, 2):
                with pytest.raises(ApiError) as caught:
                    operations.retire(number)
                codes.append(caught.value.code)
            return codes

        assert run(house, story) == ["in_service", "pinned", "not_in_memory"]
        assert house.state == (4, 4, ["demo@3", "demo@4"], [3, 4])

    def test_it_calls_off_a_load(self, house: House) -> None:
        async def story(operations: Operations) -> None:
            house.loader.gate = asyncio.Event()
            order = asyncio.create_task(operations.activate(5))
            while operations.loading != 5:
                await asyncio.sleep(0)
            assert operations.retire(5) == 0
            with pytest.raises(ApiError) as caught:
                await order
            assert caught.value.code == "load_called_off"
            house.loader.gate = None
            await operations.activate(3)

        run(house, story)
        assert house.state == (3, 3, ["demo@3", "demo@4"], [3, 4])


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
