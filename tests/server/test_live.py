"""Generations go live and back on the real server while requests run. `make test-chaos` does it under load."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from adapters.admin_client import AdminClient, AdminError
from adapters.bank import Bank
from tests.server.process import NAME, ServerProcess
from tests.server.requests import HEADER, answer_of, ask, post

FOOD = "Which food group does this description belong to?\nChicken breast tenders, breaded, uncooked"  # task 4
COUNT = ask("Count to a thousand.", max_tokens=1500, ignore_eos=True, stream=True)


@pytest.fixture
def admin(server_process: ServerProcess, current: int) -> Iterator[AdminClient]:
    """Orders to the shared server, which afterwards serves what it did, and nothing else is in memory."""
    client = AdminClient(server_process.admin_url)
    yield client
    client.activate(current)
    for number in resident(client) - {current}:
        client.unpin(number)
        client.retire(number)
    wait_until(lambda: resident(client) == {current})


def resident(client: AdminClient) -> set[int]:
    return {one["generation"] for one in client.generations()["generations"] if one["resident_bytes"] is not None}


def in_flight(client: AdminClient, number: int) -> int:
    return int(client.generations()["generations"][number]["in_flight"])


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def stream(http: httpx.Client) -> Iterator[tuple[str, Iterator[str]]]:
    """A long answer that has begun: its generation, and its further lines."""
    with http.stream("POST", "/v1/chat/completions", json=COUNT) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        yield response.headers[HEADER], lines


def test_a_running_request_keeps_its_generation_and_new_ones_get_the_new(
    http: httpx.Client, admin: AdminClient, current: int, live_bank: Path
) -> None:
    right = answer_of(post(http, text=FOOD))
    with stream(http) as (generation, lines):
        change = admin.activate(current - 1, expected=current)
        new = post(http, text=FOOD)
        assert (change["serving"], new.headers[HEADER]) == (current - 1, str(current - 1))
        assert answer_of(new) != right  # that generation has never seen a food
        pinned = post(http, text=FOOD, model=f"{NAME}@{current}")
        assert (pinned.headers[HEADER], answer_of(pinned)) == (str(current), right)
        assert Bank.open(live_bank).current() == http.get("/ready").json()["generation"] == current - 1
        assert in_flight(admin, current) == 1
        assert generation == str(current)
        assert all(f'"model":"{NAME}@{current}"' in next(line for line in lines if line) for _ in range(5))
        assert admin.rollback()["serving"] == current
        assert answer_of(post(http, text=FOOD)) == right


def test_a_retired_generation_leaves_memory_with_its_last_request(
    http: httpx.Client, admin: AdminClient, current: int
) -> None:
    """Also when that request ends because its client went away."""
    with stream(http):
        admin.activate(current - 1)
        assert admin.retire(current) == {"generation": current, "in_flight": 1}
        assert post(http, model=f"{NAME}@{current}").status_code == 404
        assert resident(admin) == {current - 1, current}
    wait_until(lambda: resident(admin) == {current - 1})
    assert post(http).headers[HEADER] == str(current - 1)


def test_a_damaged_generation_is_refused_and_changes_nothing(
    http: httpx.Client, admin: AdminClient, current: int, live_bank: Path
) -> None:
    bank = Bank.open(live_bank)
    gate = live_bank / f"objects/sha256/{bank.manifest(1).gate.object}.safetensors"
    data = gate.read_bytes()
    gate.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        with pytest.raises(AdminError, match="its bytes were altered") as caught:
            admin.activate(1)
    finally:
        gate.write_bytes(data)
    assert (caught.value.status, caught.value.code) == (422, "bank_corrupt")
    assert (bank.current(), resident(admin), post(http).headers[HEADER]) == (current, {current}, str(current))


def test_a_generation_is_uploaded_activated_and_pinned(
    http: httpx.Client, admin: AdminClient, current: int, live_bank: Path, tmp_path: Path
) -> None:
    """The trainer has a bank of its own; only the manifest is new to the server, so little more is sent."""
    source = Bank.open(shutil.copytree(live_bank, tmp_path / "source"))
    number = current + 1
    update = {"generation": number, "parent": current}
    source.publish(source.manifest(current).model_copy(update=update))
    right = answer_of(post(http, text=FOOD))
    try:
        assert admin.upload(source, source.manifest(number)) == 0
        assert admin.activate(number, expected=current)["serving"] == number
        answer = post(http, text=FOOD)
        assert (answer.headers[HEADER], answer_of(answer)) == (str(number), right)
        admin.pin(current - 2)
        assert post(http, model=f"{NAME}@{current - 2}").headers[HEADER] == str(current - 2)
    finally:
        admin.activate(current)
        admin.retire(number)
        (live_bank / f"generations/{number:05d}.json").unlink()


def test_experts_and_their_share(http: httpx.Client, admin: AdminClient, current: int) -> None:
    post(http, text=FOOD)
    time.sleep(1.1)  # the counts are up to a second old
    answer = admin.experts()
    assert answer["generation"] == current
    assert len(answer["experts"]) == current
    assert sum(one["token_share"] for one in answer["experts"]) > 0
