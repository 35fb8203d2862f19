"""`o-lora`: a new LoRA for every task, kept orthogonal to the earlier ones' input subspaces, all of them added up.

    loss = NLL + orthogonality · Σ_sites Σ_{k<t} Σ_ij |A_t A_kᵀ|_ij + shrinkage · Σ_new ‖A_t‖₂ + ‖B_t‖₂

Wang et al. 2023, "Orthogonal Subspace Learning for Language Model Continual Learning", arXiv 2310.14152; the terms and
their weights are those of the authors' code. It is another method than PEFT's initialisation called "olora".
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.benchmark.lora import LoraModel
from adapters.benchmark.lora_methods import SequentialLora
from adapters.benchmark.settings import OLoraSettings
from adapters.examples import Prepared


class OLora(SequentialLora):
    settings: OLoraSettings
    past: dict[str, Tensor]

    def start(self) -> None:
        self.past = {}

    def before_task(self, group: int) -> None:
        """The earlier adapters are frozen as one, of `group` times the rank: its product is the sum of theirs."""
        if group:
            del self.model  # one base model in memory at a time
            self.model = LoraModel(self.model_dir, self.settings, self.past)
        self.model.reset(self.settings.seed + group)

    def penalty(self) -> Tensor | None:
        terms = []
        for name, weight in self.model.weights.items():
            if self.past and ".lora_A." in name:
                terms.append(self.settings.orthogonality * (weight @ self.past[name].T).abs().sum())
            if self.settings.shrinkage:
                terms.append(self.settings.shrinkage * weight.norm())
        return torch.stack(terms).sum() if terms else None

    def after_task(self, group: int, data: Prepared) -> None:
        """The new adapter joins the earlier ones: rows of A, columns of B."""
        for name, weight in self.model.weights.items():
            new = weight.detach().clone()
            axis = 0 if ".lora_A." in name else 1
            self.past[name] = torch.cat([self.past[name], new], axis) if name in self.past else new

    def num_held(self, group: int) -> int:
        return (group + 1) * self.model.num_parameters

    def state(self) -> dict[str, Tensor]:
        """What was learned is in the past already, the last task's adapter included."""
        return {f"past.{name}": tensor for name, tensor in self.past.items()}

    def load_state(self, tensors: dict[str, Tensor], num_groups: int) -> None:
        self.past = {name.removeprefix("past."): tensor for name, tensor in tensors.items()}
