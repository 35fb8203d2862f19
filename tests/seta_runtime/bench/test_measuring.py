"""The benchmark's loop: who is asked what and when, and what is said when an engine dies."""

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from adapters.bank import Bank
from seta_runtime.bench.__main__ import Worker, chosen, measure, variants
from seta_runtime.bench.points import MIXED, POINTS
from seta_runtime.bench.variants import Variant


class Scripted:
    """A worker that answers at once and notes the order in `asked`."""

    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.variant = Variant(name, "plain", "model")
        self.asked = asked

    def ask(self, question: dict[str, Any]) -> dict[str, float]:
        self.asked.append((question["name"], self.variant.name))
        return {"tokens": 10.0, "seconds": 2.0}


def test_engines_take_turns_at_being_first() -> None:
    asked: list[tuple[str, str]] = []
    names = ["plain", "routed", "base_routed"]
    rates = measure([Scripted(name, asked) for name in names], rounds=3)  # type: ignore[misc]
    for point in POINTS:
        mine = [name for where, name in asked if where == point.name]
        rounds = [mine[i : i + 3] for i in range(0, len(mine), 3)]
        assert len(rounds) == 4 and {one[0] for one in rounds} == set(names)
        assert all(sorted(one) == sorted(names) for one in rounds)
    assert [name for where, name in asked if where == MIXED.name] == ["routed"] * 4
    assert rates["plain"]["decode_1"] == [5.0] * 3 and MIXED.name not in rates["plain"]


def test_base_requests_are_measured_beside_a_loaded_generation(demo_bank: Path, tmp_path: Path) -> None:
    found = {variant.name: variant for variant in variants("model", demo_bank, tmp_path, [])}
    newest = Bank.open(demo_bank).manifest().generation
    assert found["base_routed"].generations == (newest,) and found["base_routed"].asks_base
    assert found["routed"].generations[-1] == newest and not found["routed"].asks_base


def test_a_dead_engine_is_an_error_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread line\necho no such model >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match="engine broken ended with 3:\nno such model"):
        Worker(Variant("broken", "plain", "model"), [[1]], tmp_path / "log")


def test_some_engines_can_be_chosen() -> None:
    found = [Variant(name, "plain", "model") for name in ("plain", "routed", "base_routed", "vllm_lora")]
    assert chosen(found, None) == found
    assert [variant.name for variant in chosen(found, ["vllm_lora"])] == ["plain", "routed", "vllm_lora"]
    with pytest.raises(typer.BadParameter, match="there is no engine 'other'; choose of plain, routed"):
        chosen(found, ["other"])
