"""A generation of the bank in memory: its gate and its experts, packed for the routed layers."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from adapters.bank import (
    MAX_EXPERTS,
    Bank,
    BankConflict,
    BankCorrupt,
    BankMismatch,
    BaseModelInfo,
    Manifest,
    check_base,
)
from adapters.evidence import Gate
from adapters.gate import load_gate
from seta_runtime.kept import ExpertReader, KeptExpert, KeptExperts, PackedExperts
from seta_runtime.ops.experts import members_of
from seta_runtime.ops.paired import PairedExperts
from seta_runtime.ranks import ALONE, Ranks

MANIFEST_NAME = re.compile(r"([0-9]{5,9})\.json(?:#([0-9a-f]{64}))?")


@dataclass(frozen=True)
class ResidentGeneration:
    """All that serving one generation needs; nothing of it is read from disk again.

    `id` is the engine's adapter id; `membership [tasks, experts]` float32; `projections[(layer, target)]` the packed
    experts, in the form that the device's layers read. `kept`: the experts, where the layers read those very blocks, so
    that another generation finds them.
    """

    id: int
    generation: int
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    membership: Tensor
    gate: Gate
    projections: dict[tuple[int, str], PackedExperts]
    kept: tuple[KeptExpert, ...] = ()

    @cached_property
    def forms(self) -> set[type]:
        """Those of its projections: what a step has to be prepared for."""
        return {type(experts) for experts in self.projections.values()}

    @property
    def experts_of_task(self) -> list[list[str]]:
        return [[self.experts[e] for e in mine] for mine in members_of(self.membership)]

    def expert_gates(self, weights: Tensor) -> Tensor:
        """The gate's weights `[n, columns]` → every expert's gate `[n, experts]`."""
        return weights if self.gate.columns == "experts" else weights @ self.membership

    def leading_tasks(self, weights: Tensor) -> Tensor:
        """The gate's weights `[n, columns]` → the likeliest task `[n]`; an expert's part goes equally to its tasks."""
        if self.gate.columns == "experts":
            weights = weights @ (self.membership / self.membership.sum(0)).T
        return weights.argmax(-1)

    @property
    def nbytes(self) -> int:
        """Memory that it reads; what it has in common with other generations is there once."""
        return sum(p.nbytes for p in self.projections.values()) + self.gate.nbytes

    @classmethod
    def empty(cls, adapter_id: int, gate: Gate) -> ResidentGeneration:
        """What the engine's warm-up runs with: no task, so every token is base."""
        return cls(adapter_id, 0, (), (), torch.zeros(0, 0), gate, {})

    @classmethod
    def load(
        cls,
        adapter_id: int,
        bank_root: Path,
        generation: int,
        digest: str | None,
        found: BaseModelInfo,
        layout: Layout,
        dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks = ALONE,
        known: KeptExperts | None = None,
    ) -> ResidentGeneration:
        """Read and verify a generation; of experts that are `known` the files' digests are compared, no more.

        `digest` is its manifest's, where the caller has read that before. Of the experts, this rank's part is kept.

        Raises a BankError; nothing is kept then.
        """
        bank = Bank.open(bank_root)
        manifest = bank.manifest(generation)
        if digest is not None and manifest.digest != digest:
            raise BankConflict(f"generation {generation} has other contents than a moment ago; try again")
        check_base(manifest, found)
        layout.check(manifest)
        gate = load_gate(manifest, bank.load_gate(manifest)).to(device)
        membership = torch.zeros(len(manifest.tasks), len(manifest.experts))
        for column, rows in enumerate(manifest.tasks_by_expert):
            membership[rows, column] = 1
        served = manifest.experts_by_task if gate.columns == "tasks" else []  # only tasks have a merged form
        reader = ExpertReader(bank, manifest, dtype, device, ranks, with_mixtures=gate.is_mixture)
        known = KeptExperts() if known is None else known
        experts = [known.take(reader, info) for info in manifest.experts]
        projections = reader.pack(experts, served)
        is_shared = all(isinstance(p, PairedExperts) for p in projections.values())
        names = tuple(task.name for task in manifest.tasks)
        return cls(
            adapter_id,
            generation,
            names,
            tuple(e.id for e in manifest.experts),
            membership.to(device),
            gate,
            projections,
            tuple(experts) if is_shared else (),
        )


@dataclass(frozen=True)
class Layout:
    """What the engine was built for when it started; a generation with another layout needs a restart.

    `block_size` and `max_experts` are set where the layers' tables are made once, on a GPU.
    """

    trunk_layers: int
    targets: tuple[str, ...]
    block_size: int | None = None
    max_experts: int = MAX_EXPERTS

    def check(self, manifest: Manifest) -> None:
        """Raises BankMismatch."""
        found = (manifest.trunk_layers, set(manifest.targets) - set(self.targets))
        if found != (self.trunk_layers, set()):
            raise BankMismatch(
                f"generation {manifest.generation} has trunk_layers {manifest.trunk_layers} and targets "
                f"{list(manifest.targets)}, the engine was started for {self.trunk_layers} and {list(self.targets)}; "
                "restart the server on this bank"
            )
        size = manifest.block_size if self.block_size is None else self.block_size
        if manifest.block_size != size or len(manifest.experts) > self.max_experts:
            raise BankMismatch(
                f"generation {manifest.generation} has {len(manifest.experts)} experts of block size "
                f"{manifest.block_size}, the engine was started for at most {self.max_experts} of {size}; "
                "restart the server on this bank"
            )


@dataclass(frozen=True)
class AdapterPath:
    """How a `LoRARequest` names a generation: `<bank>/generations/00004.json`, and `#<digest of the manifest>`.

    The prefix cache's keys hold this path. With the digest, a generation of the same number and other contents (a bank
    that was wiped and filled again) cannot meet the entries of the first.
    """

    bank: Path
    generation: int
    digest: str | None

    @classmethod
    def of(cls, bank: Path, manifest: Manifest) -> AdapterPath:
        return cls(bank, manifest.generation, manifest.digest)

    @classmethod
    def parse(cls, text: str) -> AdapterPath:
        """Raises: BankCorrupt; the name is checked, not trusted."""
        path = Path(os.path.abspath(text))
        found = MANIFEST_NAME.fullmatch(path.name)
        if path.parent.name != "generations" or found is None:
            raise BankCorrupt(f"{path.name!r} is no generation's manifest; expected <bank>/generations/<number>.json")
        return cls(path.parent.parent, int(found[1]), found[2])

    def __str__(self) -> str:
        suffix = "" if self.digest is None else f"#{self.digest}"
        return f"{self.bank}/generations/{self.generation:05d}.json{suffix}"
