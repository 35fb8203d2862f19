"""A bank opened for learning: its experts in the base model, its gate, and what is known of the tasks before."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bank import (
    Bank,
    BankConflict,
    BankNotFound,
    BaseModelInfo,
    Manifest,
    check_base,
    check_grid,
)
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.calibrate import GateSettings, calibrate, general_features, general_prompts, softmax_gate
from adapters.compiled import check_compiler
from adapters.data import DataError
from adapters.evidence import Gate
from adapters.examples import Prepared
from adapters.gate import load_gate, store_gate
from adapters.parallel import ALONE, Processes
from adapters.progress import console
from adapters.recipe import creation_time
from adapters.routed import RoutedModel
from adapters.score_history import ScoreHistory
from adapters.settings import DEFAULT_RUN, LearnSettings, RunSettings
from adapters.trunk_cache import TrunkMemory


@dataclass
class Learner:
    """A bank, a backbone with the bank's experts in it, and the held-out data of the tasks seen so far."""

    bank: Bank
    model: RoutedModel
    gate: Gate
    history: ScoreHistory
    manifest: Manifest
    settings: LearnSettings
    model_name: str
    run: RunSettings = DEFAULT_RUN
    processes: Processes = ALONE
    held_out: dict[str, Prepared] = field(default_factory=dict)
    general: Tensor | None = None

    def __post_init__(self) -> None:
        self.memory = TrunkMemory(self.run.cache_mib << 20)

    @property
    def backbone(self) -> Backbone:
        return self.model.backbone

    def general_features(self) -> Tensor | None:
        """General text's features, for a gate that learns what base is; made when first needed."""
        if self.gate.kind == "softmax" and self.general is None:
            trunk_layers = self.manifest.trunk_layers
            self.general = general_features(self.backbone, trunk_layers, self.gate, general_prompts())
        return self.general


def open_learner(
    bank_dir: Path,
    model: str,
    settings: LearnSettings,
    run: RunSettings = DEFAULT_RUN,
    processes: Processes = ALONE,
    manifest: Manifest | None = None,
) -> Learner:
    """Load the base model and a generation, by default CURRENT; a new bank gets its generation 0 first."""
    if run.compile:
        check_compiler()  # before anything is made
    torch.manual_seed(settings.seed)
    model_dir = resolve_model_dir(model)
    base = fingerprint(model_dir)
    if not processes.is_main:
        processes.wait()  # until the first process has made the bank
    bank, backbone = _existing(bank_dir), None
    if bank is None or not bank.generations():
        bank, backbone, manifest = _new_bank(bank_dir, model_dir, base, settings)
    else:
        if bank.generations() == [0] and not bank.has_current():
            bank.set_current(0)  # its writer was killed in between
        manifest = manifest or bank.manifest()
        check_base(manifest, base)
    if processes.is_main:
        processes.wait()
    gate = load_gate(manifest, bank.load_gate(manifest))
    settings = _with_layout(settings, manifest, gate)
    backbone = backbone or Backbone.load(model_dir, settings.dtype)
    history = ScoreHistory.of(manifest, bank.load_scores(manifest))
    routed = RoutedModel.of(backbone, bank, manifest)
    if run.compile:
        console.print("compiling the decoder layers; the first time on a machine it takes a minute or two")
        routed.compile_layers(has_single_rows=settings.batch_size < 2 * run.accumulate * processes.count)
    return Learner(bank, routed, gate, history, manifest, settings, model, run, processes)


def _new_bank(
    bank_dir: Path, model_dir: Path, base: BaseModelInfo, settings: LearnSettings
) -> tuple[Bank, Backbone, Manifest]:
    """Publish generation 0: no task, and a gate that knows "base". What can be refused is, before anything is made."""
    trunk_layers = settings.trunk_of(base.num_layers)
    try:
        check_grid(base, trunk_layers, settings.block_size, settings.targets)
    except ValueError as error:
        raise DataError(f"{error}; choose others for a new bank on {base.architecture}") from None
    backbone = Backbone.load(model_dir, settings.dtype)
    console.print("new bank: fitting the gate's fixed parts on general text")
    kv_width, gate_settings = base.num_kv_heads * base.head_size, GateSettings(keep=settings.keep)
    fixed = calibrate(backbone, trunk_layers, kv_width, gate_settings, general_prompts())
    gate: Gate = fixed if settings.gate == "analytic" else softmax_gate(fixed)
    bank = _existing(bank_dir) or Bank.create(bank_dir)
    manifest = Manifest(
        generation=0,
        parent=None,
        created=creation_time(),
        base=base,
        trunk_layers=trunk_layers,
        block_size=settings.block_size,
        targets=settings.targets,
        gate=store_gate(bank, gate),
    )
    bank.publish(manifest)
    return bank, backbone, manifest


def _with_layout(settings: LearnSettings, manifest: Manifest, gate: Gate) -> LearnSettings:
    """What the bank's first generation fixed is taken from it; it may be repeated, not changed. Raises DataError."""
    fixed = {
        "trunk_layers": manifest.trunk_layers,
        "block_size": manifest.block_size,
        "targets": manifest.targets,
        "gate": gate.kind,
        "top_k": gate.top_k,
    }
    for name, value in fixed.items():
        wanted = getattr(settings, name)
        if name in settings.model_fields_set and wanted is not None and wanted != value:
            raise DataError(f"{name} {wanted} found, this bank was made with {value}; use that, or start a new bank")
    return settings.model_copy(update=fixed)


def _existing(bank_dir: Path) -> Bank | None:
    """The bank in a directory, None where one can be made. Raises BankConflict for a directory of something else."""
    try:
        return Bank.open(bank_dir)
    except BankNotFound:
        if not Bank(bank_dir).can_be_made():
            raise BankConflict(f"{bank_dir.name!r} is neither a bank nor empty; give another --bank") from None
        return None
