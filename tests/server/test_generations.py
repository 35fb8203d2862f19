import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import ApiError
from server.generations import Generations, Target


@pytest.fixture
def generations() -> Generations:
    """Generations 2 and 3 in memory, 3 in service; the fake stands for vLLM's table and engine."""
    table: dict[str, Any] = {}
    made = Generations("demo", "demo-base", SimpleNamespace(root=Path("bank")), _accept, table)  # type: ignore[arg-type]
    for number in (2, 3):
        asyncio.run(made.load(SimpleNamespace(generation=number)))  # type: ignore[arg-type]
    made.activate(3)
    return made


async def _accept(request: Any) -> bool:
    return True


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
    admitted = generations.resolve("demo")
    generations.activate(2)
    assert (admitted.generation, generations.resolve("demo").generation) == (3, 2)


def test_a_generation_that_does_not_load_is_not_served(generations: Generations) -> None:
    async def refuse(request: Any) -> bool:
        raise RuntimeError("digest")

    generations._add_lora = refuse
    with pytest.raises(RuntimeError, match="digest"):
        asyncio.run(generations.load(SimpleNamespace(generation=4)))  # type: ignore[arg-type]
    assert generations.names == ["demo", "demo@2", "demo@3", "demo-base"]


def test_the_engine_is_given_the_manifest_and_an_id_above_zero() -> None:
    seen: list[Any] = []

    async def note(request: Any) -> bool:
        seen.append(request)
        return True

    made = Generations("demo", "demo-base", SimpleNamespace(root=Path("bank")), note, {})  # type: ignore[arg-type]
    asyncio.run(made.load(SimpleNamespace(generation=0)))  # type: ignore[arg-type]
    (request,) = seen
    assert (request.lora_name, request.lora_int_id, request.lora_path) == ("demo@0", 1, "bank/generations/00000.json")
