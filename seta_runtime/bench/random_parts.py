"""What banks of random weights have in common: a gate, and a generation of many tasks with an expert each."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from adapters.bank import ExpertInfo, GateInfo, Manifest, TaskInfo
from adapters.bank.manifest import version_for
from adapters.gate import AnalyticGate


def random_gate(num_tasks: int, hidden: int, width: int, generator: torch.Generator) -> AnalyticGate:
    """A gate that knows every token, so every token is routed."""
    return AnalyticGate(
        projection=torch.randn(hidden, width, generator=generator) / hidden**0.5,
        content_weight=torch.zeros(hidden),
        content_bias=torch.ones(1),
        base_mean=torch.zeros(width),
        base_whitener=torch.eye(width),
        count=torch.full((num_tasks,), 100.0),
        mean=torch.randn(num_tasks, width, generator=generator),
        scatter=torch.eye(width) * 100 * num_tasks,
        threshold=torch.tensor([-2.0]),  # below any cosine
        sharpness=torch.tensor([20.0]),
        temperature=torch.tensor([0.01]),  # sure of one task
        ridge=torch.tensor([0.05]),
        keep=torch.ones(1),
    )


def one_expert_each(old: Manifest, experts: Iterable[ExpertInfo], gate: GateInfo) -> Manifest:
    """The generation after `old`: as many tasks as experts, each the only one of its expert."""
    unique, number = tuple(experts), old.generation + 1
    changes = {
        "format_version": version_for(len(unique), False),
        "generation": number,
        "parent": old.generation,
        "tasks": tuple(TaskInfo(name=e.tasks[0], generation=number, num_train=100, num_test=0) for e in unique),
        "experts": unique,
        "membership": tuple(tuple(int(i == j) for j in range(len(unique))) for i in range(len(unique))),
        "gate": gate,
    }
    return old.model_copy(update=changes)
