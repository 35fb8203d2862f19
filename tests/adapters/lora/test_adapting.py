"""Training the imported expert on the adapter's own predictions."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bank import Bank, expert_sites
from adapters.examples import Prepared
from adapters.lora.adapting import adapt, divergence
from adapters.lora.importing import Imported, import_lora
from adapters.routed import RoutedModel
from tests.adapters.lora.imports import NEW, loaded

pytestmark = pytest.mark.usefixtures("few_general_prompts")


def test_adapting_brings_the_expert_nearer_to_the_adapter(
    model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its predictions under the gate; what was measured is published, and the adapter's own weights otherwise."""
    seen: list[float] = []

    def divergence_of(learner_model: RoutedModel, data: Any, wanted: Any) -> float:
        with torch.no_grad():
            return float(divergence(learner_model, data, wanted, list(range(len(data))), random.Random(0)))

    def with_start(learner_model: RoutedModel, expert_id: str, data: Any, wanted: Any, *rest: int) -> float:
        start = divergence_of(learner_model, data, wanted)
        adapt(learner_model, expert_id, data, wanted, *rest)
        end = divergence_of(learner_model, data, wanted)
        assert end < 0.75 * start
        seen.extend([start, end])
        return end

    monkeypatch.setattr("adapters.lora.importing.adapt", with_start)
    settings = dataclasses.replace(NEW, adapt_steps=30)
    done = import_lora(tmp_path / "bank", str(model), lora, "sums", prompts, settings)
    assert len(seen) == 2
    assert done.score.accuracy >= done.exact.accuracy
    bank = Bank.open(tmp_path / "bank")
    manifest = bank.manifest()
    assert bank.verify() == [] and manifest.tasks[0].metrics["same_answers_as_lora"] == done.score.accuracy
    (a, *_) = (site.a for site in expert_sites(bank.load_expert(manifest, "sums.unique")))
    assert a.dtype == (torch.float32 if done.score == done.exact else torch.bfloat16)


def test_the_divergence_is_over_the_routed_tokens_alone(imported: tuple[Path, Imported], model: Path) -> None:
    """Against the plain formula; None where no token is routed."""
    routed, _, _ = loaded(imported[0], model)
    trunk, wanted = torch.randn(2, 5, routed.backbone.model.config.hidden_size).unbind()
    weights = torch.zeros(5, 2)
    data = Prepared([], [trunk], [], [weights])
    assert divergence(routed, data, [wanted], [0], random.Random(0)) is None
    weights[3:, 1] = 1
    with torch.no_grad():
        found = divergence(routed, data, [wanted], [0], random.Random(0))
        p = routed.backbone.logits(wanted[3:]).softmax(-1)
        q = routed.backbone.logits(routed.forward([trunk], [weights])[0, 3:]).softmax(-1)
    assert float(found) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3)


def test_without_adapting_or_if_it_is_no_better_the_expert_is_the_adapter(
    model: Path, lora: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_lora(tmp_path / "exact", str(model), lora, "sums", prompts, NEW)

    def ruin(model: RoutedModel, expert_id: str, *_: object) -> float:
        for delta in model.experts[expert_id].values():
            delta.b.data.fill_(3.0)
        model.freeze(expert_id)
        return 0.0

    monkeypatch.setattr("adapters.lora.importing.adapt", ruin)
    settings = dataclasses.replace(NEW, adapt_steps=1)
    done = import_lora(tmp_path / "ruined", str(model), lora, "sums", prompts, settings)
    assert done.score == done.exact
    one, other = (Bank.open(tmp_path / name).manifest().experts[0] for name in ("exact", "ruined"))
    assert one == other
