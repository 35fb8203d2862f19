"""What a model name means, and which requests hold which generation in memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import ApiError
from server.generations import Generations, Resident, Target


def resident(number: int, adapter_id: int | None = None) -> Resident:
    adapter = SimpleNamespace(lora_name=f"demo@{number}", lora_int_id=adapter_id or number + 10)
    return Resident(SimpleNamespace(generation=number), adapter, 1000)  # type: ignore[arg-type]


@pytest.fixture
def generations() -> Generations:
    """Generations 2 and 3 in memory, 3 in service, and 5, which is not open; a dict stands for vLLM's table."""
    made = Generations("demo", "demo-base", {})
    for number in (2, 3, 5):
        made.put(resident(number))
    made.switch(2)
    made.switch(3)
    return made


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("demo", Target("demo@3", 3)),
        (None, Target("demo@3", 3)),
        ("", Target("demo@3", 3)),
        ("demo@2", Target("demo@2", 2)),
        ("demo@3", Target("demo@3", 3)),
        ("demo-base", Target("demo-base", None)),
    ],
)
def test_names_resolve(generations: Generations, model: str | None, target: Target) -> None:
    assert generations.resolve(model) == target


@pytest.mark.parametrize("target", [Target("demo@3", 3), Target("demo-base", None)])
def test_the_header_names_the_generation(target: Target) -> None:
    assert target.headers == {"x-seta-generation": "base" if target.generation is None else "3"}


@pytest.mark.parametrize(
    "model", ["Demo", "demo@", "demo@1", "demo@03", "demo@3 ", "demo@-1", "demo-base@3", "../demo", "bank/generations"]
)
def test_any_other_name_is_refused_with_the_valid_ones(generations: Generations, model: str) -> None:
    with pytest.raises(ApiError) as caught:
        generations.resolve(model)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert "demo, demo@2, demo@3, demo-base" in caught.value.message


def test_a_long_name_is_not_repeated_in_full(generations: Generations) -> None:
    with pytest.raises(ApiError) as caught:
        generations.resolve("x" * 100_000)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("model", [5, 0, False, ["demo"], {}])
def test_a_name_must_be_a_string(generations: Generations, model: object) -> None:
    with pytest.raises(ApiError) as caught:
        generations.resolve(model)
    assert (caught.value.status, caught.value.param) == (400, "model")


def test_a_request_keeps_its_generation_when_another_goes_into_service(generations: Generations) -> None:
    with generations.admit("demo") as admitted:
        generations.switch(2)
        assert (admitted.generation, generations.resolve("demo").generation) == (3, 2)
        assert generations.residents[3].in_flight == 1
    assert generations.residents[3].in_flight == 0


def test_what_is_not_open_cannot_be_named(generations: Generations) -> None:
    assert generations.names == ["demo", "demo@2", "demo@3", "demo-base"]
    generations.residents[2].is_open = False
    assert generations.names == ["demo", "demo@3", "demo-base"]
    with pytest.raises(ApiError):
        generations.resolve("demo@2")


def test_base_requests_hold_no_generation(generations: Generations) -> None:
    with generations.admit("demo-base"):
        assert generations.base_in_flight == 1
        assert all(one.is_idle for one in generations.residents.values())
    assert generations.base_in_flight == 0


def test_vllms_table_keeps_what_is_in_memory(generations: Generations) -> None:
    """Also what takes no new request: one admitted before looks its adapter up later."""
    table: dict[str, Any] = {}
    made = Generations("demo", "demo-base", table)
    held = resident(4, adapter_id=77)
    made.put(held)
    assert table == {"demo@4": held.adapter}
    made.remove(held)
    assert (table, made.residents) == ({}, {})


@pytest.fixture
def idle(generations: Generations) -> Iterator[list[int]]:
    """The generations that were reported idle."""
    seen: list[int] = []
    generations.on_idle = lambda one: seen.append(one.number)
    yield seen


def test_idle_is_reported_once_the_last_hold_is_gone(generations: Generations, idle: list[int]) -> None:
    adapter = generations.residents[2].adapter
    with ExitStack() as engine:
        with generations.admit("demo@2"), generations.admit("demo@2"):
            engine.enter_context(generations.in_engine(adapter, "chatcmpl-1"))
        assert idle == []  # the clients have gone, the engine does not know it yet
        assert list(generations.residents[2].in_engine.values()) == ["chatcmpl-1"]
    assert idle == [2]


def test_a_failure_lets_go_too(generations: Generations, idle: list[int]) -> None:
    with pytest.raises(RuntimeError), generations.admit("demo"):
        raise RuntimeError
    assert idle == [3]


def test_two_requests_with_one_id_are_two(generations: Generations, idle: list[int]) -> None:
    adapter = generations.residents[3].adapter
    with generations.in_engine(adapter, "mine"):
        with generations.in_engine(adapter, "mine"):
            pass
        assert idle == []
    assert idle == [3]


def test_the_engines_work_on_the_base_model_holds_nothing(generations: Generations, idle: list[int]) -> None:
    with generations.in_engine(None, "chatcmpl-1"):
        pass
    assert idle == []
