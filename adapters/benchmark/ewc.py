"""`ewc`: elastic weight consolidation on one LoRA (Kirkpatrick et al. 2017, arXiv 1612.00796).

    loss = NLL + strength / 2 · Σ_k Σ_i F_ki (θ_i - θ*_ki)²

θ*_k: the LoRA after task k. F_k: the diagonal of the empirical Fisher information there, the mean over
`fisher_examples` of the task's training examples of the squared gradient of one answer's log-likelihood.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.benchmark.lora import LoraModel
from adapters.benchmark.lora_methods import SequentialLora
from adapters.benchmark.settings import EwcSettings
from adapters.examples import Prepared
from adapters.progress import track


@dataclass(frozen=True)
class Anchor:
    """One task's θ* and F, by the LoRA matrices' names."""

    centre: dict[str, Tensor]
    fisher: dict[str, Tensor]


def fisher_diagonal(model: LoraModel, data: Prepared, indices: list[int]) -> dict[str, Tensor]:
    """Mean over the examples of the squared gradient of the answer's log-likelihood (summed over its tokens)."""
    sums = {name: torch.zeros_like(weight) for name, weight in model.weights.items()}
    for index in track(indices, "fisher information", unit="examples"):
        model.clear_gradients()
        model.add_gradients(data, [index], scale=len(data.tokens[index].answer))
        for name, weight in model.weights.items():
            if weight.grad is not None:
                sums[name] += weight.grad.pow(2)
    model.clear_gradients()
    return {name: total / len(indices) for name, total in sums.items()}


class Ewc(SequentialLora):
    settings: EwcSettings
    anchors: list[Anchor]

    def start(self) -> None:
        self.anchors = []

    def penalty(self) -> Tensor | None:
        if not self.anchors:
            return None
        terms = [
            (anchor.fisher[name] * (weight - anchor.centre[name]).pow(2)).sum()
            for anchor in self.anchors
            for name, weight in self.model.weights.items()
        ]
        return self.settings.strength / 2 * torch.stack(terms).sum()

    def after_task(self, group: int, data: Prepared) -> None:
        count = min(self.settings.fisher_examples, len(data))
        indices = random.Random(self.settings.seed).sample(range(len(data)), count)
        centre = {name: weight.detach().clone() for name, weight in self.model.weights.items()}
        self.anchors.append(Anchor(centre, fisher_diagonal(self.model, data, indices)))

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for number, anchor in enumerate(self.anchors):
            tensors |= {f"centre.{number}.{name}": value for name, value in anchor.centre.items()}
            tensors |= {f"fisher.{number}.{name}": value for name, value in anchor.fisher.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], num_groups: int) -> None:
        super().load_state(tensors, num_groups)
        self.anchors = [
            Anchor(
                {name: tensors[f"centre.{number}.{name}"] for name in self.model.weights},
                {name: tensors[f"fisher.{number}.{name}"] for name in self.model.weights},
            )
            for number in range(num_groups)
        ]
