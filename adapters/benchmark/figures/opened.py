"""A stored generation, ready to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest, check_base
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.data import Example
from adapters.evidence import Gate
from adapters.examples import Prepared, prepare
from adapters.gate import load_gate
from adapters.routed import RoutedModel

MAX_TOKENS = 1024


@dataclass(frozen=True)
class OpenedBank:
    manifest: Manifest
    model: RoutedModel
    gate: Gate

    @classmethod
    def of(cls, bank_dir: Path, model: str, dtype: str = "bfloat16") -> OpenedBank:
        """The current generation. Raises BankError, BaseModelError."""
        bank = Bank.open(bank_dir)
        manifest = bank.manifest()
        model_dir = resolve_model_dir(model)
        check_base(manifest, fingerprint(model_dir))
        gate = load_gate(manifest, bank.load_gate(manifest))
        return cls(manifest, RoutedModel.of(Backbone.load(model_dir, dtype), bank, manifest), gate)

    def prepare(self, examples: list[Example], what: str) -> Prepared:
        longest = self.manifest.settings.get("max_tokens")
        limit = longest if isinstance(longest, int) else MAX_TOKENS
        return prepare(self.model.backbone, examples, self.manifest.trunk_layers, self.gate, limit, what)[0]
