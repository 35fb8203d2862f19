"""Fit the experts of one task: a training loop that can stop anywhere and go on, in one process or several.

    L = NLL + L_reg + L_gate + L_base        (eq. 13; `adapters.anchoring`, `adapters.gate_learning`)

The trunk runs once per example. The experts train under the gate's own decisions, and for a share of the examples they
start later still: an expert that always saw itself from the first token fails when a causal gate switches it on in
mid-prompt.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from adapters.anchoring import Anchors
from adapters.batches import Batches
from adapters.examples import Prepared
from adapters.gate_learning import Decisions
from adapters.nll import answer_nll
from adapters.parallel import ALONE, Processes
from adapters.progress import Steps
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings

LEARNING_RATE_FLOOR = 0.1
WARM_UP_STEPS = 10
CLIP_NORM = 1.0


class Fitting:
    """AdamW on the rank rows of the experts `plastic`, and on the gate if it learns; all else is frozen.

    `step`: how many are done. A step's batch is divided among the processes, and each one's part again into
    `accumulate` parts that are run one after another; the gradient is that of the whole batch's mean.
    """

    def __init__(
        self,
        model: RoutedModel,
        plastic: Sequence[str],
        data: Prepared,
        settings: LearnSettings,
        anchors: Anchors,
        decisions: Decisions,
        accumulate: int = 1,
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.anchors, self.decisions = anchors, decisions
        self.accumulate, self.processes = accumulate, processes
        self.rank_rows = [p for e in plastic for delta in model.experts[e].values() for p in delta.parameters()]
        self.gate_rows = decisions.parameters()
        rates = [(self.rank_rows, settings.learning_rate), (self.gate_rows, settings.gate_learning_rate)]
        groups = [{"params": parameters, "peak": rate} for parameters, rate in rates if parameters]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.batches = Batches(len(data), settings.batch_size, random.Random(settings.seed))
        self.losses: list[float] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.rank_rows, *self.gate_rows]

    def run(self, after_step: Callable[[Fitting], None] = lambda _: None) -> float:
        """The steps that are left. Returns the mean NLL of the last tenth of all steps."""
        started, tokens, total = time.monotonic(), 0, self.settings.steps
        with Steps("training", total, "steps", before=self.step) as steps:
            while self.step < total:
                tokens += self.advance()
                after_step(self)
                recent, seconds = self.losses[-10:], time.monotonic() - started
                steps.advance(f"loss {sum(recent) / len(recent):.3f}, {tokens / max(seconds, 1e-9):.0f} tokens/s")
        tail = self.losses[-max(1, total // 10) :]
        return sum(tail) / len(tail)

    def advance(self) -> int:
        """One step. Returns how many tokens it ran over, in all processes."""
        batch = self.batches.draw()
        weights = [
            late_start(
                self.decisions.weights(self.data, i),
                len(self.data.tokens[i].prompt),
                self.settings.late_start,
                self.batches.rng,
            )
            for i in batch
        ]
        self.optimiser.zero_grad()
        nll = self._backward(batch, weights)
        if self._add_up(nll):  # else the gate sends no token of the batch to an expert that learns
            for group in self.optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(self.step, self.settings.steps)
            nn.utils.clip_grad_norm_(self.rank_rows, CLIP_NORM)
            nn.utils.clip_grad_norm_(self.gate_rows, CLIP_NORM)
            self.optimiser.step()
        self.losses.append(float(nll))
        return sum(len(self.data.tokens[i].ids) - 1 for i in batch)

    def state(self) -> tuple[dict[str, Tensor], dict[str, JsonValue]]:
        """All that the rest of the steps depends on besides data, settings and frozen weights: tensors, and JSON."""
        tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": moment for name, moment in moments.items()}
        tensors |= {f"generator.{i}": g.get_state() for i, g in enumerate(self.decisions.generators())}
        return tensors, {"batches": self.batches.state(), "losses": list(self.losses)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = tensor
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        for i, generator in enumerate(self.decisions.generators()):
            generator.set_state(tensors[f"generator.{i}"])
        self.batches.restore(state["batches"])
        self.losses = list(state["losses"])

    def _backward(self, batch: list[int], weights: list[Tensor]) -> Tensor:
        """Leave this process's part of the gradient in the parameters; returns its part of the mean NLL, `[]`."""
        nll = backward_nll(self.model, self.data, batch, weights, self.accumulate, self.processes)
        if self.processes.is_main:
            for penalty in penalties(self.anchors, self.decisions, self.data, batch, self.settings):
                _run_backward(penalty)
        return nll

    def _add_up(self, nll: Tensor) -> bool:
        """Add up the gradients and the NLL over the processes. Whether any parameter has a gradient."""
        parameters = self.parameters
        has_gradient = torch.tensor([float(p.grad is not None) for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if self.processes.count > 1:
            self.processes.add_up([nll, has_gradient, *gradients])
            for parameter, gradient, has in zip(parameters, gradients, has_gradient.tolist(), strict=True):
                parameter.grad = gradient if has else None
        return bool(has_gradient.any())


def backward_nll(
    model: RoutedModel,
    data: Prepared,
    batch: Sequence[int],
    weights: Sequence[Tensor],
    accumulate: int,
    processes: Processes,
) -> Tensor:
    """This process's part of the gradient of the batch's mean NLL, in `accumulate` parts; and of the NLL itself, `[]`.

    Summed over the processes, both are the whole batch's.
    """
    num_labels = sum(len(data.tokens[i].answer) for i in batch)
    mine = processes.part(list(zip(batch, weights, strict=True)))
    total, parts = torch.zeros(()), min(accumulate, len(mine))
    for part in range(parts):
        rows = mine[part::parts]
        nll = answer_nll(model, data, [i for i, _ in rows], [w for _, w in rows]) / num_labels
        _run_backward(nll)
        total += nll.detach()
    return total


def penalties(
    anchors: Anchors, decisions: Decisions, data: Prepared, batch: Sequence[int], settings: LearnSettings
) -> list[Tensor]:
    """`L_reg`, `L_gate` and `L_base` (eq. 13); none where no shared expert and no gate learns."""
    terms, strengths = list[Tensor](), dict[str, float]()
    if anchors.by_expert:
        weight_penalty, strengths = anchors.weight_penalty()
        terms += [weight_penalty] if settings.anchor_weights else []
    return terms + decisions.penalties(data, batch, strengths if settings.anchor_routes else {})


def _run_backward(loss: Tensor) -> None:
    """Not where it depends on nothing that learns: the gate may send no token of a batch to such an expert."""
    if loss.requires_grad:
        loss.backward()


def late_start(weights: Tensor, prompt_length: int, share: float, rng: random.Random) -> Tensor:
    """An example's decisions `[T, columns]`; with probability `share`, base until a random token of its prompt."""
    if rng.random() >= share:
        return weights
    first = int(weights.any(-1).int().argmax())
    start = rng.randint(first, max(first, prompt_length - 1))
    is_on = (torch.arange(len(weights)) >= start).unsqueeze(-1)
    return weights * is_on


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (LEARNING_RATE_FLOOR + (1 - LEARNING_RATE_FLOOR) * cosine)
