"""Sixteen clients never stop while generations go live and back: nobody fails, and every answer is its generation's.

Half of the time without orders is before them, half after: the machine may not be the same all the while.

float32, so that an answer does not depend on which other requests share its batch.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

from adapters.admin_client import AdminClient, AdminError
from tests.chaos.clients import Crowd, Seen, answers, percentile
from tests.chaos.conftest import Live, Start
from tests.server.process import NAME

NUM_CLIENTS = 16
NUM_REQUESTS = 500
NUM_ORDERS = 20
PAUSE_SECONDS = 0.7
ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Order:
    """`generation` served new requests from `answered` on, until the next order was `sent`."""

    generation: int
    sent: float
    answered: float


def test_nobody_fails_and_every_answer_is_its_own_generations(start: Start, prompts: list[str]) -> None:
    live = start("--dtype", "float32", "--max-generations", "3")
    alone = {number: alone_of(live, number, prompts) for number in live.bank.generations()}
    assert len({tuple(map(tuple, answers.values())) for answers in alone.values()}) == len(alone)

    crowd = Crowd(live.url, NAME, prompts, NUM_CLIENTS)
    with crowd.running():
        crowd.wait_for(NUM_REQUESTS // 2)
        calm = list(crowd.seen)
        orders, num_refused = give_orders(live, crowd)
        while len(crowd.seen) < len(calm) + NUM_REQUESTS:
            time.sleep(0.05)
        num_busy = len(crowd.seen) - len(calm)
        crowd.wait_for(NUM_REQUESTS // 2)
    busy, calm_again = crowd.seen[len(calm) :][:num_busy], crowd.seen[len(calm) + num_busy :]
    report(calm + calm_again, busy, orders, num_refused)

    assert crowd.failed == []
    assert len(busy) >= NUM_REQUESTS and len(orders) == NUM_ORDERS + 1
    wrong = [one for one in crowd.seen if one.tokens != alone[int(one.generation)][one.prompt]]
    assert [(one.generation, one.prompt) for one in wrong] == []
    assert {one.generation for one in busy} == set(map(str, alone))
    assert num_bound_late(busy, orders) == 0
    assert len(live.resident) <= 3


def alone_of(live: Live, number: int, prompts: list[str]) -> dict[str, list[int]]:
    live.admin.activate(number)
    return {prompt: seen.tokens for prompt, seen in asyncio.run(answers(live.url, NAME, prompts)).items()}


def give_orders(live: Live, crowd: Crowd) -> tuple[list[Order], int]:
    """Activations of any generation, every fourth order a rollback; a 429 is tried again, as its sender would."""
    rng, admin = random.Random(1), live.admin
    orders, num_refused = [Order(live.serving, time.monotonic(), time.monotonic())], 0
    while len(orders) <= NUM_ORDERS:
        time.sleep(PAUSE_SECONDS)
        wait_for_an_answer(crowd, orders[-1])
        sent = time.monotonic()
        try:
            change = one_order(admin, rng, orders, is_rollback=len(orders) % 4 == 0)
        except AdminError as error:
            assert error.code == "too_many_generations", error
            num_refused += 1
            continue
        orders.append(Order(change, sent, time.monotonic()))
    return orders, num_refused


def wait_for_an_answer(crowd: Crowd, order: Order) -> None:
    """However slow the machine, each order is in force for at least one whole request."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not any(one.started > order.answered for one in crowd.seen[-10 * NUM_CLIENTS :]):
        assert time.monotonic() < deadline, f"no request ended since generation {order.generation} serves"
        time.sleep(0.05)


def one_order(admin: AdminClient, rng: random.Random, orders: list[Order], is_rollback: bool) -> int:
    """A rollback, or one of the generations that served least often."""
    serving = orders[-1].generation
    if is_rollback:
        return int(admin.rollback(expected=serving)["serving"])
    times = Counter(order.generation for order in orders)
    wanted = min((number for number in range(5) if number != serving), key=lambda number: (times[number], rng.random()))
    return int(admin.activate(wanted, expected=serving)["serving"])


def num_bound_late(seen: list[Seen], orders: list[Order]) -> int:
    """Requests sent after an order was answered, and answered before the next was sent, by another generation."""
    late = 0
    for order, following in zip(orders, [*orders[1:], None], strict=True):
        until = float("inf") if following is None else following.sent
        within = [one for one in seen if one.started > order.answered and one.answered < until]
        late += sum(one.generation != str(order.generation) for one in within)
    return late


def report(calm: list[Seen], busy: list[Seen], orders: list[Order], num_refused: int) -> None:
    gaps = [[1000 * gap for one in part for gap in one.gaps] for part in (calm, busy)]
    seconds = [order.answered - order.sent for order in orders[1:]]
    print(f"\n{len(busy)} requests during {len(orders) - 1} orders ({num_refused} were refused with 429 and repeated)")
    print(f"an order took {percentile(seconds, 50):.2f} s (median), {max(seconds):.2f} s at most")
    for name, part in zip(("without", "with"), gaps, strict=True):
        shown = ", ".join(f"p{percent} {percentile(part, percent):.0f}" for percent in (50, 90, 99))
        print(f"gaps between tokens {name} orders, ms: {shown}, most {max(part):.0f} ({len(part)} gaps)")
    print(f"99th percentile with / without: {percentile(gaps[1], 99) / percentile(gaps[0], 99):.2f}")
