"""Evaluate a stored generation on held-out examples, the way the trainer does after each task."""

from __future__ import annotations

from pathlib import Path

from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest, check_base
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.data import DataError, Example
from adapters.evaluate import TaskScore, score_task
from adapters.examples import places, prepare
from adapters.gate import load_gate
from adapters.progress import console
from adapters.routed import RoutedModel
from adapters.trunk_cache import TrunkMemory


def evaluate_bank(
    bank_dir: Path, model: str, tests: dict[str, list[Example]], generation: int | None, dtype: str
) -> tuple[Manifest, dict[str, TaskScore]]:
    """Scores of every task of `tests`. Raises DataError for a task that the generation does not know."""
    bank = Bank.open(bank_dir)
    manifest = bank.manifest(generation)
    names = [task.name for task in manifest.tasks]
    unknown = sorted(set(tests) - set(names))
    if unknown:
        raise DataError(
            f"tasks {', '.join(unknown)} are not in generation {manifest.generation}, "
            f"which knows: {', '.join(names) or 'none'}"
        )
    model_dir = resolve_model_dir(model)
    check_base(manifest, fingerprint(model_dir))
    backbone = Backbone.load(model_dir, dtype)
    gate = load_gate(manifest, bank.load_gate(manifest))
    routed = RoutedModel.of(backbone, bank, manifest)
    longest = manifest.settings.get("max_tokens")
    max_tokens = longest if isinstance(longest, int) else backbone.model.config.max_position_embeddings
    scores, memory = {}, TrunkMemory()
    for name, examples in tests.items():
        data, num_long = prepare(backbone, examples, manifest.trunk_layers, gate, max_tokens, name, memory)
        if num_long:
            console.print(
                f"{name}: {num_long} of {len(examples)} examples are longer than {max_tokens} tokens "
                f"and were left out: {places(data.too_long)}"
            )
        scores[name] = score_task(routed, gate, data, names.index(name), name)
    return manifest, scores
