"""Learn tasks in order, publish one generation per task: the top of the training side, read from `learn_tasks` down."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bank import (
    Bank,
    BankConflict,
    BankNotFound,
    BaseModelInfo,
    GateInfo,
    Manifest,
    check_base,
    check_grid,
)
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.calibrate import GateSettings, calibrate, general_features, general_prompts, softmax_gate
from adapters.composition import anchor, compose
from adapters.data import DataError, Example
from adapters.evaluate import score_task
from adapters.evidence import Gate
from adapters.examples import Prepared, prepare
from adapters.gate import load_gate
from adapters.gate_learning import expand_gate
from adapters.progress import console
from adapters.publish import Learned, publish
from adapters.routed import RoutedModel
from adapters.score_history import ScoreHistory
from adapters.settings import LearnSettings
from adapters.trainer import choose_blocks, fit_experts, new_expert

Tasks = Mapping[str, list[Example]]


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
    held_out: dict[str, Prepared] = field(default_factory=dict)
    general: Tensor | None = None
    make_current: bool = True

    @property
    def backbone(self) -> Backbone:
        return self.model.backbone


def learn_tasks(
    bank_dir: Path, model: str, tasks: Tasks, tests: Tasks, settings: LearnSettings, make_current: bool = True
) -> Manifest:
    """Learn every task of `tasks` in order; returns the last published manifest.

    `tests`: held-out examples by task; a task without any keeps a share of its own back. Without `make_current` the
    bank's CURRENT stays. Raises DataError, BankError; a task that fails leaves the generations before it in place.
    """
    learner = open_learner(bank_dir, model, settings)
    learner.make_current = make_current
    known = {task.name for task in learner.manifest.tasks}
    for name in tasks:
        if name in known:
            raise DataError(
                f"task {name!r} is already in generation {learner.manifest.generation}; give the new task another name"
            )
    for name in (n for n in tests if n in known):
        learner.held_out[name] = _prepare(learner, tests[name], f"{name} (held out)")
    for name, examples in tasks.items():
        learn(learner, name, examples, tests.get(name))
    return learner.manifest


def open_learner(bank_dir: Path, model: str, settings: LearnSettings) -> Learner:
    """Load the base model and the bank's current generation; a new bank gets its generation 0 first."""
    torch.manual_seed(settings.seed)
    model_dir = resolve_model_dir(model)
    base = fingerprint(model_dir)
    bank = _existing(bank_dir)
    if bank is None or not bank.generations():
        bank, backbone, manifest = _new_bank(bank_dir, model_dir, base, settings)
    else:
        manifest = bank.manifest()
        check_base(manifest, base)
        backbone = None
    gate = load_gate(manifest, bank.load_gate(manifest))
    settings = _with_layout(settings, manifest, gate)
    backbone = backbone or Backbone.load(model_dir, settings.dtype)
    history = ScoreHistory.of(manifest, bank.load_scores(manifest))
    return Learner(bank, RoutedModel.of(backbone, bank, manifest), gate, history, manifest, settings, model)


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
        created=datetime.now(UTC),
        base=base,
        trunk_layers=trunk_layers,
        block_size=settings.block_size,
        targets=settings.targets,
        gate=GateInfo(kind=gate.kind, **bank.put_object(gate.tensors())._asdict()),
    )
    bank.publish(manifest)
    return bank, backbone, manifest


def learn(learner: Learner, name: str, examples: list[Example], test: list[Example] | None) -> None:
    """Learn one task: score blocks → share or split → expand the gate → fit → evaluate → publish."""
    settings, model, index = learner.settings, learner.model, len(learner.manifest.tasks)
    names = [*(task.name for task in learner.manifest.tasks), name]
    train, test = _split(examples, test, settings)
    console.rule(f"task {name!r}: {len(train)} examples, {len(test)} held out")
    data = _prepare(learner, train, name)
    learner.held_out[name] = _prepare(learner, test, f"{name} (held out)")

    choice = choose_blocks(model, data, settings, learner.history)
    known = list(model.experts)
    composition = compose(model, choice.blocks, names, settings)
    unique_id, shared = f"{name}.unique", list(composition.parent_of)
    if composition.own:
        model.add(unique_id, new_expert(model, composition.own, settings), [index])
    learning = shared if settings.sharing == "elastic" else []
    for expert_id in learning:
        model.thaw(expert_id)
    anchors = anchor(model, learning, settings)
    decisions = expand_gate(learner.gate, model, data, composition, known, _general(learner), settings)
    plastic = [*learning, *([unique_id] if composition.own else [])]
    loss = fit_experts(model, plastic, data, settings, anchors, decisions)
    gate = decisions.gate()
    for expert_id in plastic:
        model.round_as_stored(expert_id)
        model.freeze(expert_id)
    learner.gate, learner.history = gate, learner.history.with_task(choice.scores)

    scores = {task: score_task(model, gate, held, names.index(task), task) for task, held in learner.held_out.items()}
    numbers = {"final_loss": round(loss, 4), "warm_up_steps": choice.warm_up_steps}
    changed = {*plastic, *shared, *composition.parent_of.values()}
    learned = Learned(name, len(data), changed, scores, numbers)
    stored_settings = {**settings.model_dump(mode="json"), "model": learner.model_name}
    state = (model, gate, learner.history)
    learner.manifest = publish(
        learner.bank, learner.manifest, *state, learned, stored_settings, make_current=learner.make_current
    )
    console.print(
        f"generation {learner.manifest.generation}: {name} {scores[name].accuracy:.1f} % right, "
        f"{scores[name].routing:.1f} % routed to it",
        highlight=False,
    )


def _prepare(learner: Learner, examples: list[Example], what: str) -> Prepared:
    settings = learner.settings
    assert settings.trunk_layers is not None
    data, num_long = prepare(learner.backbone, examples, settings.trunk_layers, learner.gate, settings.max_tokens, what)
    if num_long:
        console.print(
            f"{what}: {num_long} of {len(examples)} examples are longer than {settings.max_tokens} tokens "
            "and were left out"
        )
    return data


def _split(
    examples: list[Example], test: list[Example] | None, settings: LearnSettings
) -> tuple[list[Example], list[Example]]:
    if test:
        return examples, test
    count = max(1, round(settings.held_out * len(examples)))
    if len(examples) <= count:
        raise DataError(
            f"task {examples[0].task!r}: {len(examples)} example(s) found, at least 2 expected: "
            "one to train on and one to hold out"
        )
    shuffled = random.Random(settings.seed).sample(examples, len(examples))
    return shuffled[count:], shuffled[:count]


def _general(learner: Learner) -> Tensor | None:
    """General text's features, for a gate that learns what base is; made when first needed."""
    if learner.gate.kind == "softmax" and learner.general is None:
        trunk_layers = learner.manifest.trunk_layers
        learner.general = general_features(learner.backbone, trunk_layers, learner.gate, general_prompts())
    return learner.general


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
        if bank_dir.exists() and any(bank_dir.iterdir()):
            raise BankConflict(f"{bank_dir.name!r} is neither a bank nor empty; give another --bank") from None
        return None
