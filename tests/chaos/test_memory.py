"""Generations come and go, memory does not grow."""

import time

from tests.chaos.conftest import CURRENT, Live

NUM_CYCLES = 50
NUM_FIRST_CYCLES = 5
MAX_GROWTH = 0.05


def used_bytes(live: Live) -> int:
    """What the server's processes hold for themselves alone."""
    root = live.process.root
    return sum(process.memory_full_info().uss for process in [root, *root.children(recursive=True)])


def cycle(live: Live, number: int) -> None:
    live.admin.activate(number)
    assert live.ask().status_code == 200
    live.admin.activate(CURRENT)
    live.admin.retire(number)
    while live.resident != {CURRENT}:
        time.sleep(0.01)


def test_memory_returns(live: Live) -> None:
    for number in range(NUM_FIRST_CYCLES):  # the allocators' pools fill
        cycle(live, number % CURRENT)
    before = used_bytes(live)
    sizes = []
    for number in range(NUM_CYCLES):
        cycle(live, number % CURRENT)
        sizes.append(used_bytes(live))
    growth = sizes[-1] / before - 1
    mib = [f"{size / 2**20:.1f} MiB" for size in (before, sizes[-1])]
    print(f"\n{mib[0]} before, {mib[1]} after {NUM_CYCLES} cycles ({100 * growth:+.2f} %)")
    assert abs(growth) <= MAX_GROWTH
