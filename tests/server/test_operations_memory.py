"""What orders keep in memory: the bound on generations, who leaves, and what is retired."""

import asyncio
import threading

import pytest

from adapters.bank import Bank
from server.errors import ApiError
from server.operations import Operations
from tests.server.house import House
from tests.server.orders import refused, run


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
