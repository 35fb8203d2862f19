"""When requests are sent, against a server that is a coroutine."""

import asyncio
import itertools
import time
from collections.abc import Iterator

import pytest

from loadtest.driver import Driver
from loadtest.outcome import Outcome
from loadtest.recorder import Recorder
from loadtest.stages import Stage
from loadtest.workload import Request
from tests.loadtest.outcomes import SETTINGS


class Server:
    """Answers after `seconds`, one request after the other if it is `serial`; counts what it does at once."""

    def __init__(self, seconds: float, serial: bool = False) -> None:
        self.seconds = seconds
        self.places = asyncio.Semaphore(1 if serial else 10_000)
        self.now = self.most = 0

    async def __call__(self, request: Request, due: float) -> Outcome:
        sent = time.perf_counter()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async with self.places:
                await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        end = time.perf_counter()
        return Outcome(request.task, due, sent, end=end, first=end)


def endless() -> Iterator[Request]:
    return itertools.repeat(Request("t", [], 1))


def drive(
    stage: Stage,
    server: Server,
    times: Iterator[float] | None = None,
    *,
    requests: Iterator[Request] | None = None,
    max_in_flight: int = 1000,
    stop_after: float | None = None,
) -> Recorder:
    async def run() -> Recorder:
        stop = asyncio.Event()
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.set)
        recorder = Recorder(SETTINGS, time.perf_counter(), stage.warmup_seconds)
        await Driver(stage, server, requests or endless(), recorder).run(times, max_in_flight, stop)
        assert recorder.in_flight == 0
        return recorder

    return asyncio.run(run())


def open_stage(seconds: float = 1.0, **more: object) -> Stage:
    return Stage(name="s", arrivals="poisson", rate=1, seconds=seconds, **more)  # type: ignore[arg-type]


def every(gap: float) -> Iterator[float]:
    return (index * gap for index in itertools.count())


def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Server(0.5)
    recorder = drive(open_stage(), server, every(0.1))
    assert recorder.total.sent == recorder.total.completed == 10
    assert server.most >= 4


def test_a_stalled_server_cannot_hide_its_stall() -> None:
    """A request each 50 ms, 100 ms of work each, one at a time: the n-th waits for n others. Each waiting time counts.

    A closed loop with one client sees 100 ms for every request of the same server: that is coordinated omission.
    """
    slow = drive(open_stage(1.0), Server(0.1, serial=True), every(0.05))
    assert slow.total.sent == 20
    assert slow.total.e2e.quantile(1.0) >= 20 * 0.1 - 19 * 0.05 - 0.01
    closed = drive(Stage(name="s", arrivals="closed", concurrency=1, seconds=0.5), Server(0.1, serial=True))
    assert closed.total.e2e.quantile(0.5) < slow.total.e2e.quantile(0.5)


def test_beyond_max_in_flight_requests_go_out_late_and_it_shows() -> None:
    server = Server(0.2)
    recorder = drive(open_stage(0.4), server, every(0.02), max_in_flight=2)
    assert server.most == 2
    assert recorder.total.sent == 20
    assert recorder.lateness.quantile(1.0) > 1.0  # twenty requests of 0.2 s, two at a time
    assert recorder.total.ttft.quantile(1.0) > 1.0


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    server = Server(0.05)
    recorder = drive(Stage(name="s", arrivals="closed", concurrency=3, seconds=0.5), server)
    assert server.most == 3
    assert 3 <= recorder.total.sent <= 33


@pytest.mark.parametrize("times", [None, every(0.001)])
def test_a_number_of_requests_ends_a_stage(times: Iterator[float] | None) -> None:
    stage = (
        open_stage(60, requests=7)
        if times
        else Stage(name="s", arrivals="closed", concurrency=3, seconds=60, requests=7)
    )
    assert drive(stage, Server(0.01), times).total.completed == 7


def test_the_end_of_the_workload_ends_a_stage() -> None:
    stage = Stage(name="s", arrivals="closed", concurrency=3, seconds=60)
    assert drive(stage, Server(0.01), requests=itertools.islice(endless(), 5)).total.completed == 5


def test_warm_up_is_sent_and_not_counted() -> None:
    recorder = drive(open_stage(0.5, warmup_seconds=0.25), Server(0.0), every(0.1))
    assert (recorder.warmup_requests, recorder.total.sent) == (3, 2)


@pytest.mark.parametrize("times", [None, every(0.05)])
def test_stopping_keeps_what_was_measured(times: Iterator[float] | None) -> None:
    stage = open_stage(60) if times else Stage(name="s", arrivals="closed", concurrency=4, seconds=60)
    server = Server(0.3)
    recorder = drive(stage, server, times, stop_after=0.75)
    total = recorder.total
    assert total.completed > 0 and total.unfinished > 0
    assert total.sent == total.completed + total.unfinished
    assert server.now == 0, "nothing goes on after the end"


def test_a_fault_of_our_own_is_not_hidden() -> None:
    class Broken(Server):
        async def __call__(self, request: Request, due: float) -> Outcome:
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as error:
        drive(open_stage(60), Broken(0.0), every(0.1))
    assert error.group_contains(ZeroDivisionError)
