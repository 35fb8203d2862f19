"""A task's experts as a PEFT LoRA, for software that knows no bank. The gate cannot go along: a LoRA always acts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.bank import Bank, BankNotFound, Manifest, expert_sites
from adapters.blocks import Site
from adapters.lora.config import LoraError
from adapters.lora.convert import to_lora
from adapters.lora.files import LoraDelta, write_adapter
from adapters.progress import track
from adapters.sparse_lora import SparseDelta


@dataclass(frozen=True)
class Exported:
    generation: int
    experts: tuple[str, ...]
    deltas: dict[Site, LoraDelta]

    @property
    def rank(self) -> int:
        return max(len(delta.a) for delta in self.deltas.values())


def export_lora(bank_dir: Path, task: str, directory: Path, generation: int | None = None) -> Exported:
    """Write what a token routed to `task` adds to the base model, `Σ ΔW` of the task's experts, as a LoRA of its rank.

    Raises LoraError, BankError.
    """
    bank = Bank.open(bank_dir)
    manifest = bank.manifest(generation)
    experts = experts_of(manifest, task)
    parts: dict[Site, list[SparseDelta]] = {}
    for expert_id in experts:
        for site in expert_sites(bank.load_expert(manifest, expert_id)):
            part = SparseDelta(site.blocks, site.a, site.b, manifest.base.target_dims(site.target))
            parts.setdefault((site.layer, site.target), []).append(part)
    deltas: dict[Site, LoraDelta] = {}
    for place in track(sorted(parts), f"LoRA of {task}", unit="projections"):
        if (delta := to_lora(parts[place])) is not None:
            deltas[place] = delta
    if not deltas:
        raise LoraError(f"task {task!r} changes nothing in generation {manifest.generation}; there is no LoRA to write")
    model = manifest.settings.get("model")
    write_adapter(directory, deltas, model if isinstance(model, str) else None)
    return Exported(manifest.generation, experts, deltas)


def experts_of(manifest: Manifest, task: str) -> tuple[str, ...]:
    """The experts that the task composes. Raises BankNotFound for a task that the generation does not know."""
    names = [known.name for known in manifest.tasks]
    if task not in names:
        raise BankNotFound(
            f"generation {manifest.generation} has no task {task!r}; it has: {', '.join(names) or 'none'}"
        )
    return tuple(expert.id for expert in manifest.experts if task in expert.tasks)
