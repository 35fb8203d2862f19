"""What the tests of imported LoRAs share: prompts, settings, and ways to look at a bank."""

import json
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest
from adapters.gate import load_gate
from adapters.lora.importing import ImportSettings
from adapters.routed import RoutedModel

PROMPTS = [f"Add {n} to {n + 3} for me, please." for n in range(12)]
ANSWER_TOKENS = 4
NEW = ImportSettings(dtype="float32", answer_tokens=ANSWER_TOKENS, adapt_steps=0)


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(bank_dir: Path, model: Path) -> tuple[RoutedModel, Any, Manifest]:
    bank = Bank.open(bank_dir)
    manifest = bank.manifest()
    routed = RoutedModel.of(Backbone.load(model, "float32"), bank, manifest)
    return routed, load_gate(manifest, bank.load_gate(manifest)), manifest


def copy_of(bank_dir: Path, target: Path) -> Path:
    for path in bank_dir.rglob("*"):
        if path.is_file():
            (target / path.relative_to(bank_dir)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(bank_dir)).write_bytes(path.read_bytes())
    return target
