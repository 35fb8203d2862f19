"""Which engines are compared: every one exists, every figure has its pair, and some can be chosen."""

from pathlib import Path

import pytest
import typer

from adapters.bank import Bank
from seta_runtime.bench.__main__ import chosen
from seta_runtime.bench.engines import variants
from seta_runtime.bench.groups import groups
from seta_runtime.bench.variants import Variant

FIGURES = {
    "routed_vs_base": 4,
    "base_routed_vs_base": 4,
    "base_vs_itself": 4,
    "two_generations_vs_one": 1,
    "routed_vs_vllm_lora": 4,
    "base_vs_vllm_lora": 4,
    "tasks16_vs_4": 4,
    "tasks64_vs_4": 4,
}


def test_every_figure_has_its_points_and_every_engine_its_figure() -> None:
    found = groups([64, 4, 16])
    assert {name: len(group.points) for group in found for name in group.ratios} == FIGURES
    for group in found:
        assert {engine for pair in group.ratios.values() for engine in pair} == set(group.engines)


def test_every_engine_of_a_group_can_be_started(demo_bank: Path, tmp_path: Path) -> None:
    found = variants("model", demo_bank, tmp_path, [4])
    assert {name for group in groups([4]) for name in group.engines} == set(found)
    newest = Bank.open(demo_bank).manifest().generation
    assert found["routed"].generations[-1] == newest and found["base_routed"].generations == (newest,)
    assert found["plain_again"].engine_args() == found["plain"].engine_args()
    assert found["two_generations"].generations == found["routed"].generations
    assert {name for name, variant in found.items() if variant.asks == "two"} == {"two_generations"}
    assert {name for name, variant in found.items() if variant.asks == "base"} == {"base_routed"}


def test_what_the_requests_of_a_batch_name() -> None:
    loaded = ["old", "new"]
    asked = {asks: Variant("v", "routed", "model", asks=asks).asked_for(loaded) for asks in ("newest", "two", "base")}  # type: ignore[arg-type]
    assert asked == {"newest": ["new"], "two": ["new", "old"], "base": []}


def test_some_engines_can_be_chosen() -> None:
    everything = groups([4, 16, 64])
    assert chosen(everything, None) == everything
    few = chosen(everything, ["base_routed"])
    assert [group.name for group in few] == ["base"] and few[0].engines == ("plain", "routed", "base_routed")
    assert list(few[0].ratios) == ["routed_vs_base", "base_routed_vs_base"]
    assert [group.name for group in chosen(everything, ["vllm_lora"])] == ["base", "lora"]
    with pytest.raises(typer.BadParameter, match="there is no engine 'other'; choose of plain, routed"):
        chosen(everything, ["other"])


def test_some_points_can_be_chosen() -> None:
    everything = groups([4, 16])
    few = chosen(everything, ["two_generations"], ["prefill", "decode_1"])
    assert [(group.name, [point.name for point in group.points]) for group in few] == [
        ("base", ["decode_1", "prefill"])
    ]
    with pytest.raises(
        typer.BadParameter, match="no point 'decode_2'; choose of decode_1, decode_8, decode_32, prefill"
    ):
        chosen(everything, None, ["decode_2"])


def test_one_size_of_bank_is_compared_with_nothing() -> None:
    assert [group.name for group in chosen(groups([4]), None)] == ["base", "generations", "lora"]
