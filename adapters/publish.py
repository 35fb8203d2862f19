"""Write what was learned: the changed experts, the gate, the block scores, and the manifest that makes it a generation.

Experts that a task left alone are referred to, not written. One that the task cut in two keeps its id for what is left
of it; the part that it shares has an id of its own (`adapters.split_on_share.shared_id`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from adapters.bank import Bank, ExpertInfo, Manifest, ScoresInfo, TaskInfo
from adapters.bank.manifest import version_for
from adapters.evaluate import TaskScore
from adapters.evidence import Gate
from adapters.gate import store_gate
from adapters.recipe import creation_time
from adapters.routed import RoutedModel
from adapters.score_history import ScoreHistory


@dataclass(frozen=True)
class Learned:
    """One task's outcome. `changed`: the experts that are new or not what they were; `numbers`: further metrics.

    `scores` is empty, and `num_test` says on how many examples the numbers are, where no accuracy was measured.
    """

    name: str
    num_train: int
    changed: Collection[str]
    scores: Mapping[str, TaskScore]
    numbers: Mapping[str, float]
    num_test: int = 0
    recipe_sha256: str | None = None
    created: datetime = field(default_factory=creation_time)

    @property
    def metrics(self) -> dict[str, float]:
        score = self.scores.get(self.name)
        measured = {} if score is None else {"accuracy": score.accuracy, "routing": score.routing}
        return {**{name: round(value, 2) for name, value in measured.items()}, **self.numbers}


def publish(
    bank: Bank,
    old: Manifest,
    model: RoutedModel,
    gate: Gate,
    history: ScoreHistory,
    learned: Learned,
    settings: Mapping[str, object],
    make_current: bool = True,
) -> Manifest:
    """The generation after `old` that knows one more task; by default the bank makes it current. Raises BankError."""
    generation = max(bank.generations()) + 1
    score = learned.scores.get(learned.name)
    task = TaskInfo(
        name=learned.name,
        generation=generation,
        num_train=learned.num_train,
        num_test=learned.num_test if score is None else score.num_test,
        metrics=learned.metrics,
        recipe_sha256=learned.recipe_sha256,
    )
    tasks = (*old.tasks, task)
    scores = ScoresInfo(**bank.put_object(history.tensors())._asdict()) if history.count else None
    version = max(old.format_version, version_for(len(tasks), scores is not None))
    manifest = old.model_copy(
        update={
            "format_version": version,
            "generation": generation,
            "parent": old.generation,
            "created": learned.created,
            "tasks": tasks,
            "experts": _experts(bank, old, model, [task.name for task in tasks], learned.changed),
            "membership": membership(model, len(tasks)) if version < 3 else (),
            "gate": store_gate(bank, gate),
            "scores": scores,
            "accuracy_matrix": next_matrix(old, learned.name, learned.scores),
            "settings": dict(settings),
        }
    )
    bank.publish(manifest, make_current)
    return manifest


def changed_unmeasured(model: RoutedModel, learned: Learned, names: Sequence[str]) -> list[str]:
    """Tasks that use an expert which is not what it was, and have no score."""
    touched = {names[task] for expert_id in learned.changed for task in model.expert_tasks.get(expert_id, [])}
    return [name for name in names if name in touched and name not in learned.scores]


def membership(model: RoutedModel, num_tasks: int) -> tuple[tuple[int, ...], ...]:
    """`[tasks][experts]` of 0/1: which experts each task composes."""
    return tuple(tuple(int(task in tasks) for tasks in model.expert_tasks.values()) for task in range(num_tasks))


def next_matrix(old: Manifest, name: str, scores: Mapping[str, TaskScore]) -> tuple[tuple[float, ...], ...]:
    """One more row, if every task's held-out data was at hand; else no matrix, rather than one with holes."""
    names = [*(task.name for task in old.tasks), name]
    if any(task not in scores for task in names) or len(old.accuracy_matrix) != len(old.tasks):
        return ()
    return (*old.accuracy_matrix, tuple(round(scores[task].accuracy, 2) for task in names))


def _experts(
    bank: Bank, old: Manifest, model: RoutedModel, names: list[str], changed: Collection[str]
) -> tuple[ExpertInfo, ...]:
    known = {expert.id: expert for expert in old.experts}
    experts = []
    for expert_id, deltas in model.experts.items():
        if expert_id in known and expert_id not in changed:
            experts.append(known[expert_id])
            continue
        tasks = tuple(names[task] for task in model.expert_tasks[expert_id])
        experts.append(
            ExpertInfo(
                id=expert_id,
                kind="unique" if len(tasks) == 1 else "shared",
                tasks=tasks,
                rank=next(iter(deltas.values())).rank,
                num_blocks=sum(len(delta.blocks) for delta in deltas.values()),
                **bank.put_object(model.expert_tensors(expert_id))._asdict(),
            )
        )
    return tuple(experts)
