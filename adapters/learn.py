"""Learn tasks in order, publish one generation per task: the top of the training side, read from `learn_tasks` down."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.bank import (
    Bank,
    BankConflict,
    BankNotFound,
    BaseModelInfo,
    ExpertInfo,
    GateInfo,
    Manifest,
    TaskInfo,
    check_base,
)
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.calibrate import GateSettings, calibrate, general_prompts
from adapters.data import DataError, Example
from adapters.evaluate import TaskScore, score_task
from adapters.examples import Prepared, gate_samples, prepare
from adapters.gate import AnalyticGate, load_gate
from adapters.progress import console
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.trainer import choose_blocks, fit_expert, new_expert

Tasks = Mapping[str, list[Example]]


@dataclass
class Learner:
    """A bank, a backbone with the bank's experts in it, and the held-out data of the tasks seen so far."""

    bank: Bank
    model: RoutedModel
    gate: AnalyticGate
    manifest: Manifest
    settings: LearnSettings
    model_name: str
    held_out: dict[str, Prepared] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        return self.model.backbone


def learn_tasks(bank_dir: Path, model: str, tasks: Tasks, tests: Tasks, settings: LearnSettings) -> Manifest:
    """Learn every task of `tasks` in order; returns the last published manifest.

    `tests`: held-out examples by task; a task without any keeps a share of its own back. Raises DataError, BankError; a
    task that fails leaves the generations before it in place.
    """
    learner = open_learner(bank_dir, model, settings)
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
    bank = _open_or_create(bank_dir)
    backbone = Backbone.load(model_dir, settings.dtype)
    manifest = bank.manifest() if bank.generations() else _first_generation(bank, backbone, base, settings)
    check_base(manifest, base)
    gate = load_gate(manifest, bank.load_gate(manifest))
    _refuse_another_layout(manifest, settings)
    settings = settings.model_copy(
        update={"trunk_layers": manifest.trunk_layers, "block_size": manifest.block_size, "targets": manifest.targets}
    )
    return Learner(bank, RoutedModel.of(backbone, bank, manifest), gate, manifest, settings, model)


def _first_generation(bank: Bank, backbone: Backbone, base: BaseModelInfo, settings: LearnSettings) -> Manifest:
    """Publish generation 0: no task, and a gate that knows "base"."""
    console.print("new bank: fitting the gate's fixed parts on general text")
    trunk_layers = settings.trunk_of(base.num_layers)
    gate = calibrate(backbone, trunk_layers, base.num_kv_heads * base.head_size, GateSettings(), general_prompts())
    manifest = Manifest(
        generation=0,
        parent=None,
        created=datetime.now(UTC),
        base=base,
        trunk_layers=trunk_layers,
        block_size=settings.block_size,
        targets=settings.targets,
        gate=GateInfo(kind="analytic", **bank.put_object(gate.tensors())._asdict()),
    )
    bank.publish(manifest)
    return manifest


def learn(learner: Learner, name: str, examples: list[Example], test: list[Example] | None) -> None:
    """Learn one task: score blocks → fit the gate → fit the expert → evaluate → publish."""
    settings, index = learner.settings, len(learner.manifest.tasks)
    train, test = _split(examples, test, settings)
    console.rule(f"task {name!r}: {len(train)} examples, {len(test)} held out")
    data = _prepare(learner, train, name)
    learner.held_out[name] = _prepare(learner, test, f"{name} (held out)")

    blocks, warm_up_steps = choose_blocks(learner.model, data, settings, _coverage(learner))
    gate = learner.gate.with_task(gate_samples(learner.gate, data))
    data.route(gate)
    expert_id = f"{name}.unique"
    expert = new_expert(learner.model, blocks, settings)
    learner.model.add(expert_id, expert, [index])
    loss = fit_expert(learner.model, expert, data, settings)
    learner.model.round_as_stored(expert_id)
    learner.model.freeze(expert_id)
    learner.gate = gate

    scores = {
        task: score_task(learner.model, gate, held, _index(learner, task, index), task)
        for task, held in learner.held_out.items()
    }
    numbers = {"final_loss": round(loss, 4), "warm_up_steps": warm_up_steps}
    learner.manifest = publish(learner, name, len(data), expert_id, scores, numbers)


def publish(
    learner: Learner,
    name: str,
    num_train: int,
    expert_id: str,
    scores: Mapping[str, TaskScore],
    numbers: Mapping[str, float],
) -> Manifest:
    """Write the expert, the gate and a manifest; the bank makes it current."""
    bank, old, settings = learner.bank, learner.manifest, learner.settings
    generation = max(bank.generations()) + 1
    ref = bank.put_object(learner.model.expert_tensors(expert_id))
    num_blocks = sum(len(delta.blocks) for delta in learner.model.experts[expert_id].values())
    expert = ExpertInfo(
        id=expert_id, kind="unique", tasks=(name,), rank=settings.rank, num_blocks=num_blocks, **ref._asdict()
    )
    score = scores[name]
    metrics = {"accuracy": round(score.accuracy, 2), "routing": round(score.routing, 2), **numbers}
    task = TaskInfo(name=name, generation=generation, num_train=num_train, num_test=score.num_test, metrics=metrics)
    gate = GateInfo(kind="analytic", **bank.put_object(learner.gate.tensors())._asdict())
    manifest = old.model_copy(
        update={
            "generation": generation,
            "parent": old.generation,
            "created": datetime.now(UTC).replace(microsecond=0),
            "tasks": (*old.tasks, task),
            "experts": (*old.experts, expert),
            "membership": (*((*row, 0) for row in old.membership), (0,) * len(old.experts) + (1,)),
            "gate": gate,
            "accuracy_matrix": _next_matrix(old, name, scores),
            "settings": {**settings.model_dump(mode="json"), "model": learner.model_name},
        }
    )
    bank.publish(manifest)
    console.print(
        f"generation {generation}: {name} {score.accuracy:.1f} % right, {score.routing:.1f} % routed to it",
        highlight=False,
    )
    return manifest


def _next_matrix(old: Manifest, name: str, scores: Mapping[str, TaskScore]) -> tuple[tuple[float, ...], ...]:
    """One more row, if every task's held-out data was at hand; else no matrix, rather than one with holes."""
    names = [*(task.name for task in old.tasks), name]
    if any(task not in scores for task in names) or len(old.accuracy_matrix) != len(old.tasks):
        return ()
    return (*old.accuracy_matrix, tuple(round(scores[task].accuracy, 2) for task in names))


def _index(learner: Learner, task: str, new: int) -> int:
    return next((i for i, known in enumerate(learner.manifest.tasks) if known.name == task), new)


def _coverage(learner: Learner) -> dict[int, float]:
    """Share of each layer's sub-blocks that earlier tasks hold."""
    held: dict[int, set[tuple[str, int, int]]] = {}
    total: dict[int, int] = {}
    for (layer, target), routed in learner.model.sites.items():
        rows, columns = (d // learner.settings.block_size for d in routed.base.weight.shape)
        total[layer] = total.get(layer, 0) + rows * columns
        for delta in routed.deltas.values():
            held.setdefault(layer, set()).update((target, r, c) for r, c in delta.blocks.tolist())
    return {layer: len(held.get(layer, ())) / count for layer, count in total.items()}


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


def _refuse_another_layout(manifest: Manifest, settings: LearnSettings) -> None:
    """What the bank's first generation fixed may be repeated, not changed. Raises DataError."""
    for name in ("trunk_layers", "block_size", "targets"):
        wanted, fixed = getattr(settings, name), getattr(manifest, name)
        if name in settings.model_fields_set and wanted is not None and wanted != fixed:
            raise DataError(
                f"{name} {wanted} found, this bank was made with {fixed}; leave it out, or start a new bank"
            )


def _open_or_create(bank_dir: Path) -> Bank:
    try:
        return Bank.open(bank_dir)
    except BankNotFound:
        if bank_dir.exists() and any(bank_dir.iterdir()):
            raise BankConflict(f"{bank_dir.name!r} is neither a bank nor empty; give another --bank") from None
        return Bank.create(bank_dir)
