"""Is a task that was never learned told from those that were? Leave each one out in turn.

The gate is fitted on the other tasks' training prompts. Its score of a prompt is the similarity to the nearest task at
the prompt's end. AUROC: how often a known task's test prompt scores higher than one of the task left out. "Caught": the
share of the latter below the score under which 5 % of the known ones lie.
"""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from adapters.benchmark.figures.store import Figure
from adapters.benchmark.tasks import TaskData
from adapters.data import DataError
from adapters.examples import Prepared, gate_samples, prepare
from adapters.gate import AnalyticGate
from adapters.learn import Learner, open_learner
from adapters.settings import LearnSettings

FALSE_ALARMS = 0.05


def auroc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """Probability that a known prompt scores higher than an unknown one; a tie counts half."""
    ordered = sorted(unknown)
    below = sum(bisect.bisect_left(ordered, score) + bisect.bisect_right(ordered, score) for score in known)
    return below / (2 * len(known) * len(unknown))


def caught(known: Sequence[float], unknown: Sequence[float], false_alarms: float = FALSE_ALARMS) -> float:
    """Share of the unknown below the threshold that at most `false_alarms` of the known are below."""
    threshold = sorted(known)[int(false_alarms * len(known))]
    return sum(score < threshold for score in unknown) / len(unknown)


@torch.no_grad()
def scores(gate: AnalyticGate, data: Prepared) -> list[float]:
    """Similarity to the nearest task at every prompt's end."""
    pairs = zip(data.tokens, data.pooled, strict=True)
    ends = torch.stack([pooled[len(tokens.prompt) - 1] for tokens, pooled in pairs])
    return gate.similarity(ends).amax(-1).tolist()


def measure_unknown(tasks: Sequence[TaskData], sequence: str, model: str, settings: LearnSettings) -> Figure:
    """No expert is trained: the trunk's outputs are all it takes. Raises DataError, BaseModelError."""
    with tempfile.TemporaryDirectory() as folder:
        learner = open_learner(Path(folder) / "bank", model, settings)
    known_to_none = learner.gate
    if not isinstance(known_to_none, AnalyticGate):
        raise DataError(f"gate {known_to_none.kind} found, expected analytic: it tells unknown tasks without training")
    samples, tests = {}, {}
    for task in tasks:
        train = _prepared(learner, task, is_train=True)
        samples[task.name] = gate_samples(learner.gate, train)
        tests[task.name] = _prepared(learner, task, is_train=False)
    rows, values = [], {}
    for left_out in tests:
        gate = known_to_none
        for name in (name for name in tests if name != left_out):
            gate = gate.with_task(samples[name])
        known = [score for name in tests if name != left_out for score in scores(gate, tests[name])]
        unknown = scores(gate, tests[left_out])
        threshold = float(gate.threshold)
        values[left_out] = {
            "auroc": auroc(known, unknown),
            "caught_at_5_percent": caught(known, unknown),
            "called_base": sum(score < threshold for score in unknown) / len(unknown),
            "known_called_base": sum(score < threshold for score in known) / len(known),
        }
    means = {key: sum(found[key] for found in values.values()) / len(values) for key in next(iter(values.values()))}
    for name, found in [*values.items(), ("mean", means)]:
        rows.append((name, f"{found['auroc']:.4f}", *(f"{100 * v:.1f} %" for v in list(found.values())[1:])))
    return Figure(
        name=f"unknown-{sequence.replace(',', '-')[:60]}",
        title=f"An unknown task told from known ones, {sequence}",
        note="At the gate's own threshold: the share of the left-out task's prompts, and of the known tasks', that is "
        "called base.",
        head=("left out", "AUROC", "caught at 5 % false alarms", "called base", "known, called base"),
        rows=tuple(rows),
        values={**values, "mean": means},
    )


def _prepared(learner: Learner, task: TaskData, is_train: bool) -> Prepared:
    settings = learner.settings
    assert settings.trunk_layers is not None
    examples = task.train if is_train else task.test
    return prepare(learner.backbone, examples, settings.trunk_layers, learner.gate, settings.max_tokens, task.name)[0]
