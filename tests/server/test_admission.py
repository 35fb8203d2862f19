"""The queue in front of the engine: bounded, fair between keys, and no place is ever lost."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import Admission, Bounds, Visit, bounds
from server.config import ServeConfig
from server.errors import ApiError


def house(places: int = 2, per_key: int | None = None, queued: int = 100, queued_per_key: int = 100) -> Admission:
    return Admission(Bounds(places, per_key, queued, queued_per_key))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


class Guest:
    """A request that comes in, waits for its turn as a task, and leaves when told to."""

    def __init__(self, admission: Admission, key: str | None, places: int = 1) -> None:
        self.key = key
        self.visit = admission.enter(key)
        self.waiting = asyncio.create_task(self.visit.wait_turn(places))

    @property
    def runs(self) -> bool:
        return self.visit.began is not None

    async def leave(self) -> None:
        self.waiting.cancel()
        self.visit.leave()
        await settle()


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def come(admission: Admission, *keys: str | None, places: int = 1) -> list[Guest]:
    guests = [Guest(admission, key, places) for key in keys]
    await settle()
    return guests


def running(guests: list[Guest]) -> list[str | None]:
    return [guest.key for guest in guests if guest.runs]


def test_a_free_place_is_taken_at_once_and_a_taken_one_waited_for() -> None:
    async def work() -> None:
        admission = house(places=2)
        guests = await come(admission, "a", "b", "c")
        assert running(guests) == ["a", "b"]
        assert (admission.places_taken, admission.queued) == (2, 1)
        await guests[0].leave()
        assert guests[2].runs
        for guest in guests:
            await guest.leave()
        assert (admission.places_taken, admission.queued) == (0, 0)

    run(work())


def test_a_key_with_many_requests_does_not_keep_another_waiting() -> None:
    async def work() -> None:
        admission = house(places=2)
        hog = await come(admission, *["hog"] * 10)
        (guest,) = await come(admission, "guest")
        await hog[0].leave()
        assert guest.runs and running(hog[1:]) == ["hog"]

    run(work())


def test_keys_that_come_and_go_one_by_one_do_not_starve_one_that_waits() -> None:
    """A place goes to the key served longest ago, also when a key had nothing in the house for a moment."""

    async def work() -> None:
        admission = house(places=1)
        (now,) = await come(admission, "x")
        (patient,) = await come(admission, "patient")
        for turn in range(6):
            (following,) = await come(admission, "xy"[turn % 2])
            await now.leave()
            if patient.runs:
                return
            assert following.runs
            now = following
        pytest.fail("the patient key never got its turn")

    run(work())


def test_of_one_key_the_first_to_come_is_the_first_to_run() -> None:
    async def work() -> None:
        admission = house(places=1)
        guests = await come(admission, *"aaaa")
        for guest in guests:
            assert running(guests)[:1] == ["a"] and guest.runs
            await guest.leave()

    run(work())


def test_a_large_request_is_not_overtaken_until_it_fits() -> None:
    async def work() -> None:
        admission = house(places=4)
        small = await come(admission, *"abc")
        (large,) = await come(admission, "large", places=4)
        late = await come(admission, "a")
        assert not large.runs and not late[0].runs
        for guest in small:
            await guest.leave()
        assert large.runs and not late[0].runs

    run(work())


def test_a_request_larger_than_the_house_gets_all_of_it() -> None:
    async def work() -> None:
        admission = house(places=2)
        (guest,) = await come(admission, "a", places=50)
        assert guest.runs and admission.places_taken == 2

    run(work())


def test_a_key_has_a_bound_of_its_own_and_without_keys_there_is_none() -> None:
    async def work() -> None:
        guests = await come(house(places=4, per_key=1), "a", "a", "b")
        assert running(guests) == ["a", "b"]
        guests = await come(house(places=2, per_key=1, queued_per_key=1), None, None, None, None)
        assert len(running(guests)) == 2

    run(work())


def refused(admission: Admission, key: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admission.enter(key)
    return caught.value


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def work() -> None:
        admission = house(places=1, queued=2)
        guests = await come(admission, "a", "a", "b")  # none has a turn yet, one will
        error = refused(admission, "c")
        assert (error.status, error.code) == (429, "queue_full")
        assert 1 <= int(error.headers["retry-after"]) <= 60
        await guests[1].leave()
        admission.enter("c")

    run(work())


def test_a_key_with_a_full_queue_is_refused_and_others_are_not() -> None:
    async def work() -> None:
        admission = house(places=1, queued_per_key=1)
        await come(admission, "a", "a")
        assert refused(admission, "a").code == "key_queue_full"
        await come(admission, "b")
        assert admission.refused == Counter({"key_queue_full": 1})

    run(work())


def test_a_request_that_is_still_being_sent_counts_as_queued() -> None:
    admission = house(places=1, queued=1)
    visit, other = admission.enter("a"), admission.enter("a")
    assert refused(admission, "b").code == "queue_full"
    visit.leave()
    visit.leave()
    other.leave()
    assert admission.queued == 0


def test_who_leaves_the_queue_frees_its_place_there() -> None:
    async def work() -> None:
        admission = house(places=1, queued=1)
        first, second = await come(admission, "a", "a")
        await second.leave()
        (third,) = await come(admission, "a")
        await first.leave()
        assert third.runs

    run(work())


def test_a_turn_that_comes_with_the_cancellation_is_given_on() -> None:
    async def work() -> None:
        admission = house(places=1)
        first, second, third = await come(admission, "a", "b", "c")
        second.waiting.cancel()
        first.visit.leave()  # hands the place out before the cancellation has arrived anywhere
        second.visit.leave()
        await settle()
        assert third.runs and admission.places_taken == 1

    run(work())


Step = tuple[str, str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.sampled_from("abc"), st.integers(1, 5)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, places=st.integers(1, 6), per_key=st.none() | st.integers(1, 6))
def test_whatever_happens_the_books_are_right(steps: list[Step], places: int, per_key: int | None) -> None:
    async def work() -> None:
        admission = house(places, per_key, queued=8, queued_per_key=5)
        inside: list[Guest] = []
        for what, key, number in steps:
            try:
                if what == "come":
                    inside += await come(admission, key, places=number)
                elif inside:
                    guest = inside.pop(number % len(inside))
                    if what == "cancel":
                        guest.waiting.cancel()
                    await guest.leave()
            except ApiError as error:
                assert error.status == 429
            check_books(admission, inside)
        for guest in inside:
            await guest.leave()
        assert (admission.places_taken, admission.queued, admission._keys) == (0, 0, {})

    run(work())


def check_books(admission: Admission, inside: list[Guest]) -> None:
    """The counts are those of the guests, no bound is broken, and nobody waits beside a place that fits."""
    most = admission.bounds
    runs = [guest.visit for guest in inside if guest.runs]
    by_key = Counter({key: sum(v.places for v in runs if v.tenant == key) for key in "abc"})
    assert admission.places_taken == sum(by_key.values()) <= most.places
    assert all(count <= (most.places_per_key or most.places) for count in by_key.values())
    assert admission.queued == len(inside) - len(runs)
    assert admission.queued <= most.queued + most.places
    first: list[Visit] = []
    for key in "abc":
        waits = [guest.visit for guest in inside if guest.key == key and not guest.runs]
        if waits and by_key[key] + waits[0].places <= (most.places_per_key or most.places):
            first.append(waits[0])
    if first:  # the next in line does not fit, so nobody overtakes it
        fewest = min(by_key[visit.tenant] for visit in first)
        assert any(
            visit.places + admission.places_taken > most.places for visit in first if by_key[visit.tenant] == fewest
        )


def test_the_default_is_a_quarter_more_than_the_engine_batches(tmp_path: Any) -> None:
    config = ServeConfig(model="m", name="m", bank=tmp_path)
    assert bounds(config, max_num_seqs=128).places == 160
    assert bounds(config, max_num_seqs=1).places == 2
    assert bounds(config.model_copy(update={"max_running": 7}), max_num_seqs=128).places == 7
