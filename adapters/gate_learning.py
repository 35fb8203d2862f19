"""The gate while a task is learned: the analytic one is fitted before, the softmax one learns with the experts.

    L = NLL + L_reg + L_gate + L_base        (eq. 13; L_base is ours: -E[log p(base)] over general text)

Without L_base nothing would teach the softmax gate what belongs to no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from adapters.anchoring import route_penalty
from adapters.composition import Composition
from adapters.evidence import Gate
from adapters.examples import Prepared, gate_samples
from adapters.gate import AnalyticGate
from adapters.publish import membership
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.softmax_gate import ExpansionSettings, SoftmaxGate, largest

BASE_SAMPLES = 256
"""Positions of general text in each step's L_base."""


class Decisions(Protocol):
    """Where the experts' weights come from while they learn."""

    def parameters(self) -> list[nn.Parameter]: ...
    def weights(self, data: Prepared, index: int) -> Tensor:
        """For one example `[T, columns]`, differentiable if the gate learns."""
        ...

    def penalties(self, data: Prepared, batch: Sequence[int], strengths: Mapping[str, float]) -> list[Tensor]:
        """What a step adds to the loss; `strengths`: λ_i of the shared experts that learn (eq. 10)."""
        ...

    def gate(self) -> Gate:
        """As it is now."""
        ...

    def generators(self) -> list[torch.Generator]:
        """What `penalties` draws random numbers from."""
        ...


class Fitted:
    """A gate that is ready: its decisions are `data.weights`."""

    def __init__(self, gate: AnalyticGate) -> None:
        self._gate = gate

    def parameters(self) -> list[nn.Parameter]:
        return []

    def weights(self, data: Prepared, index: int) -> Tensor:
        return data.weights[index]

    def penalties(self, data: Prepared, batch: Sequence[int], strengths: Mapping[str, float]) -> list[Tensor]:
        return []

    def gate(self) -> AnalyticGate:
        return self._gate

    def generators(self) -> list[torch.Generator]:
        return []


class Learning:
    """The softmax gate's rows as parameters; `general [n, c]`: prefix means of general text, which is base's."""

    def __init__(self, gate: SoftmaxGate, expert_ids: Sequence[str], general: Tensor, seed: int) -> None:
        self._gate = gate
        self._row = {expert_id: row for row, expert_id in enumerate(expert_ids)}
        self._general = gate.features(general)
        self._generator = torch.Generator().manual_seed(seed)
        self.weight, self.bias = nn.Parameter(gate.weight.clone()), nn.Parameter(gate.bias.clone())

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight, self.bias]

    def weights(self, data: Prepared, index: int) -> Tensor:
        """Without the cut at base: where all gates are zero, nothing could be learned."""
        return largest(self._log_probabilities(self._gate.features(data.pooled[index])).exp()[:, :-1], self._gate.top_k)

    def penalties(self, data: Prepared, batch: Sequence[int], strengths: Mapping[str, float]) -> list[Tensor]:
        """L_base, and L_gate (eq. 12) if a shared expert learns."""
        chosen = torch.randint(len(self._general), (BASE_SAMPLES,), generator=self._generator)
        terms = [-self._log_probabilities(self._general[chosen])[:, -1].mean()]
        if strengths:
            features = self._gate.features(torch.cat([data.pooled[i] for i in batch]))
            found = self._log_probabilities(features).exp()
            terms.append(route_penalty(strengths, {i: found[:, self._row[i]] for i in strengths}))
        return terms

    def gate(self) -> SoftmaxGate:
        return replace(self._gate, weight=self.weight.detach().clone(), bias=self.bias.detach().clone())

    def generators(self) -> list[torch.Generator]:
        return [self._generator]

    def _log_probabilities(self, features: Tensor) -> Tensor:
        return torch.log_softmax(features @ self.weight.T + self.bias, dim=-1)


def expand_gate(
    gate: Gate,
    model: RoutedModel,
    data: Prepared,
    composition: Composition,
    known: Sequence[str],
    general: Tensor | None,
    settings: LearnSettings,
) -> Decisions:
    """The gate for one more task with examples `data`; `known`: the experts before it, in the order of the gate's rows.

    The model's experts are those after it. `general`: for the softmax gate only.
    """
    if isinstance(gate, AnalyticGate):
        fitted = gate.with_task(gate_samples(gate, data))
        data.route(fitted)
        return Fitted(fitted)
    assert isinstance(gate, SoftmaxGate) and general is not None
    row = {expert_id: index for index, expert_id in enumerate(known)}
    parents = [row.get(composition.parent_of.get(expert_id, expert_id)) for expert_id in model.experts]
    num_tasks = 1 + max(task for tasks in model.expert_tasks.values() for task in tasks)
    members = torch.tensor(membership(model, num_tasks), dtype=torch.float32)
    expansion = ExpansionSettings(settings.expansion, settings.gate_perturbation, settings.seed)
    expanded = gate.expanded(parents, gate_samples(gate, data), members, expansion)
    return Learning(expanded, list(model.experts), general, settings.seed)
