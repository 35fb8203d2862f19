"""The model of a real size, in its tiny shape: whole, loadable, and routed on every token."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors import safe_open

from adapters.base_model import fingerprint
from adapters.gate import load_gate
from seta_runtime.bench import big, random_model
from seta_runtime.bench.big import prepare, summarise, variants
from seta_runtime.bench.points import Point
from seta_runtime.resident import Layout, ResidentGeneration


def test_model_and_bank_are_whole_and_every_token_is_routed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_model, "SHARD_BYTES", 1 << 19)
    model, bank = prepare(tmp_path, "tiny", 3)
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 1 and bank.verify() == []
    manifest = bank.manifest()
    assert manifest.base == fingerprint(model) and manifest.base.num_layers == 5 and manifest.trunk_layers == 1
    with safe_open(shards[0], "pt") as file:
        assert file.get_tensor("model.embed_tokens.weight").std() > 0.01
    layout = Layout(1, ("v_proj",))
    device = torch.device("cpu")
    loaded = ResidentGeneration.load(1, bank.root, 1, None, manifest.base, layout, torch.bfloat16, device)
    assert len(loaded.projections) == 4
    gate = load_gate(manifest, bank.load_gate(manifest))
    weights = gate.decide(torch.randn(200, gate.width))
    assert bool((weights.sum(-1) == 1).all()) and bool(weights.any(0).all()), "all tokens, and all tasks"
    made = [path.stat().st_mtime_ns for path in shards]
    prepare(tmp_path, "tiny", 3)
    assert [path.stat().st_mtime_ns for path in shards] == made, "what is there is used again"
    assert [v.generations for v in variants(model, bank)] == [(), (1,)]


def test_ratios_are_of_medians_and_of_turns() -> None:
    def engine(rss: int, **rates: list[float]) -> dict[str, object]:
        return {"tokens_per_second": {"decode_1": rates}, "rss_bytes": rss, "activation_seconds": 0.5}

    engines = {"plain": engine(100, base=[1, 10, 11]), "routed": engine(130, newest=[9, 8, 1], base=[10, 10, 1])}
    found = summarise("tiny", 4, engines)
    assert found["ratios"] == {"routed_vs_base": {"decode_1": 0.8}, "routed_vs_base_routed": {"decode_1": 0.9}}
    assert found["over_plain_bytes"] == 30
    assert {"0.800", "0.900"} <= {str(cell) for cell in big._table(found).columns[1]._cells}


class FakeEngine:
    """Base requests take twice as long."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def begin(self, point: Point, number: int, asks: str) -> None:
        self.asked.append(asks)

    def slice(self, steps: int) -> SimpleNamespace:
        return SimpleNamespace(tokens=steps, seconds=steps * (2.0 if self.asked[-1] == "base" else 1.0))


def test_what_is_asked_for_takes_turns_there_and_back() -> None:
    engine = FakeEngine()
    rates = big._rates(engine, big.POINTS[0], ("newest", "base"), rounds=1)  # type: ignore[arg-type]
    assert rates == {"newest": [1.0] * 4, "base": [0.5] * 4}, "the first turns are not in it"
    assert engine.asked == ["base", "newest", "newest", "base", "base", "newest", "newest", "base", "base", "newest"]


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(big.NEEDED_BYTES, "tiny", 1 << 60)
    with pytest.raises(typer.BadParameter, match="GiB are free .* give another --folder"):
        prepare(tmp_path, "tiny", 3)
    assert not list(tmp_path.iterdir())
