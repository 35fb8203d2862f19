"""Examples made ready to train on: what does not fit is named, and the same tensors come out wherever they are kept."""

from pathlib import Path

import pytest
import torch

from adapters.backbone import Backbone
from adapters.calibrate import GateSettings, calibrate, general_prompts
from adapters.data import DataError, Example, read_examples
from adapters.examples import gate_samples, places, prepare
from adapters.gate import AnalyticGate
from adapters.routed import pool
from adapters.trunk_cache import TrunkCache, TrunkMemory
from tests.tiny import make_tiny_model

TRUNK_LAYERS = 1


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(make_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def gate(backbone: Backbone) -> AnalyticGate:
    return calibrate(backbone, TRUNK_LAYERS, 64, GateSettings(), general_prompts()[:40])


def examples(lengths: list[int]) -> list[Example]:
    """Prompts of so many words."""
    return [Example(task="words", prompt="word " * length, answer="yes") for length in lengths]


def test_what_is_too_long_is_left_out_and_named(backbone: Backbone, gate: AnalyticGate, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(e.model_dump_json(exclude_none=True) + "\n" for e in examples([2, 90, 3, 90, 90])))
    data, num_long = prepare(backbone, read_examples(path), TRUNK_LAYERS, gate, 64, "words")
    assert num_long == 3 and len(data) == len(data.trunk) == len(data.pooled) == 2
    assert data.too_long == [f"{path}:2", f"{path}:4", f"{path}:5"]
    path.write_text(examples([90])[0].model_dump_json(exclude_none=True))
    with pytest.raises(DataError) as error:
        prepare(backbone, read_examples(path), TRUNK_LAYERS, gate, 64, "words")
    assert str(error.value) == (
        f"words: every example is longer than 64 tokens (max_tokens), {path}:1; raise max_tokens or shorten them"
    )


def test_only_the_first_few_places_are_said() -> None:
    assert places(["a:1"]) == "a:1"
    assert places([f"a:{i}" for i in range(5)]) == "a:0, a:1, a:2, a:3, a:4"
    assert places([f"a:{i}" for i in range(9)]) == "a:0, a:1, a:2, a:3, a:4, 4 more"


def test_no_example_is_longer_than_the_models_context(
    backbone: Backbone, gate: AnalyticGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone.model.config, "max_position_embeddings", 32)
    data, num_long = prepare(backbone, examples([2, 40]), TRUNK_LAYERS, gate, 1000, "words")
    assert num_long == 1 and len(data.tokens[0].ids) <= 32
    with pytest.raises(DataError, match=r"longer than 32 tokens \(the model's context\).*; shorten them"):
        prepare(backbone, examples([40]), TRUNK_LAYERS, gate, 1000, "words")


def test_on_disk_or_in_memory_the_tensors_are_the_same(backbone: Backbone, gate: AnalyticGate) -> None:
    """Trunk outputs, what the gate makes of them, its decisions, and what describes the task to it."""
    found = examples([1, 9, 3, 14])
    kept, _ = prepare(backbone, found, TRUNK_LAYERS, gate, 1000, "words")
    on_disk, _ = prepare(backbone, found, TRUNK_LAYERS, gate, 1000, "words", TrunkMemory(20_000))
    assert isinstance(on_disk.trunk, TrunkCache) and on_disk.trunk.disk_bytes and on_disk.trunk.memory_bytes
    knowing = gate.with_task(gate_samples(gate, kept))
    assert torch.equal(gate_samples(gate, on_disk), gate_samples(gate, kept))
    for data in (kept, on_disk):
        data.route(knowing)
    for i, tokens in enumerate(kept.tokens):
        assert kept.trunk[i].shape == (len(tokens.ids) - 1, 128)
        for one, other in ((kept.trunk, on_disk.trunk), (kept.pooled, on_disk.pooled), (kept.weights, on_disk.weights)):
            assert torch.equal(one[i], other[i])
        assert torch.equal(kept.pooled[i], pool(gate, kept.trunk[i]))
        assert torch.equal(kept.weights[i], knowing.decide(kept.pooled[i]))
    assert [len(w) for w in kept.weights[1:3]] == [len(t.ids) - 1 for t in kept.tokens[1:3]]
    assert kept.batches(40) == on_disk.batches(40)


@pytest.mark.parametrize("most", [1, 7, 20, 10_000])
def test_of_a_large_data_set_every_kth_prefix_mean_describes_the_task(
    most: int, backbone: Backbone, gate: AnalyticGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = prepare(backbone, examples([1, 9, 3, 14]), TRUNK_LAYERS, gate, 1000, "words")
    every_one = gate_samples(gate, data)
    monkeypatch.setattr("adapters.examples.MAX_GATE_SAMPLES", most)
    found = gate_samples(gate, data)
    step = -(-sum(len(tokens.ids) - 1 for tokens in data.tokens) // most)
    assert torch.equal(found, every_one[::step]) and len(found) <= most
