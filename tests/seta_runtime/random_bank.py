"""A bank of random experts for a tiny model, with a gate that really routes: two kinds of text are two tasks."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bank import Bank, ExpertInfo, Manifest, Target, TaskInfo
from adapters.base_model import fingerprint
from adapters.blocks import Block, blocks_at
from adapters.calibrate import GateSettings, calibrate, general_prompts
from adapters.data import Example
from adapters.evidence import Gate
from adapters.examples import gate_samples, prepare
from adapters.gate import AnalyticGate, store_gate
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.trainer import new_expert

TASKS = ("sums", "shouts")
TRUNK_LAYERS, BLOCK_SIZE, RANK = 1, 32, 3
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def prompts_of(task: str, count: int, seed: int) -> list[str]:
    """Texts that even a random trunk tells apart."""
    rng = random.Random(f"{task} {seed}")
    if task == "sums":
        return [" + ".join(str(rng.randint(10, 999)) for _ in range(rng.randint(4, 9))) for _ in range(count)]
    words = ["STOP", "GO", "RUN NOW", "NEVER", "HURRY UP", "LOOK OUT", "MOVE", "WAIT"]
    return ["! ".join(rng.choices(words, k=rng.randint(4, 9))) + "!" for _ in range(count)]


def make_random_bank(path: Path, model_dir: Path, targets: tuple[Target, ...]) -> Bank:
    """Generation 0, then one generation a task; every target above the trunk has random sub-blocks with B not zero."""
    bank, model, gate = empty_bank(path, model_dir, targets)
    manifest = bank.manifest()
    for task in TASKS:
        gate = gate.with_task(samples_of(task, model, gate))
        manifest = _add_task(bank, manifest, task, model, gate)
    return bank


def samples_of(task: str, model: RoutedModel, gate: Gate) -> Tensor:
    """What a gate learns a task from."""
    examples = [Example(task=task, prompt=prompt, answer="yes") for prompt in prompts_of(task, 40, seed=0)]
    data, _ = prepare(model.backbone, examples, TRUNK_LAYERS, gate, 512, task)
    return gate_samples(gate, data)


def empty_bank(path: Path, model_dir: Path, targets: tuple[Target, ...]) -> tuple[Bank, RoutedModel, AnalyticGate]:
    """Generation 0, a model without experts, and the gate."""
    backbone, base = Backbone.load(model_dir, "float32"), fingerprint(model_dir)
    gate = calibrate(backbone, TRUNK_LAYERS, base.num_kv_heads * base.head_size, GateSettings(), general_prompts()[:40])
    bank = Bank.create(path)
    manifest = Manifest(
        generation=0,
        parent=None,
        created=CREATED,
        base=base,
        trunk_layers=TRUNK_LAYERS,
        block_size=BLOCK_SIZE,
        targets=targets,
        gate=store_gate(bank, gate),
    )
    bank.publish(manifest)
    return bank, RoutedModel(backbone, TRUNK_LAYERS, targets), gate


def _add_task(bank: Bank, old: Manifest, task: str, model: RoutedModel, gate: AnalyticGate) -> Manifest:
    generation, expert_id = old.generation + 1, f"{task}.unique"
    add_random_expert(model, expert_id, old, generation)
    ref = bank.put_object(model.expert_tensors(expert_id, torch.float32))
    num_blocks = sum(len(delta.blocks) for delta in model.experts[expert_id].values())
    expert = ExpertInfo(id=expert_id, kind="unique", tasks=(task,), rank=RANK, num_blocks=num_blocks, **ref._asdict())
    changes = {
        "generation": generation,
        "parent": old.generation,
        "tasks": (*old.tasks, TaskInfo(name=task, generation=generation, num_train=40, num_test=0)),
        "experts": (*old.experts, expert),
        "membership": (*((*row, 0) for row in old.membership), (0,) * len(old.experts) + (1,)),
        "gate": store_gate(bank, gate),
    }
    manifest = Manifest(**(dict(old) | changes))
    bank.publish(manifest)
    return manifest


def add_random_expert(model: RoutedModel, expert_id: str, manifest: Manifest, seed: int) -> None:
    """Two sub-blocks a projection in the first task (a sparse form), all of them in the second (a dense one)."""
    blocks: set[Block] = set()
    for layer, target in model.sites:
        rows, columns = (d // BLOCK_SIZE for d in manifest.base.target_dims(target))  # type: ignore[arg-type]
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(torch.int32)
        generator = torch.Generator().manual_seed(100 * seed + layer)
        chosen = torch.randperm(len(grid), generator=generator)[: 2 if seed == 1 else len(grid)].sort().values
        blocks |= blocks_at({(layer, target): grid[chosen]})
    expert = new_expert(model, blocks, LearnSettings(block_size=BLOCK_SIZE, rank=RANK))
    for index, delta in enumerate(expert.values()):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        delta.b.data = torch.randn(delta.b.shape, generator=generator) * 0.2
    model.add(expert_id, expert, [seed - 1])
