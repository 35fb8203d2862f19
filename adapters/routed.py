"""A backbone with experts in it: the training-side counterpart of the serving engine's routed layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest
from adapters.blocks import Site
from adapters.gate import AnalyticGate, prefix_mean
from adapters.sparse_lora import Gates, RoutedLinear, SparseDelta
from adapters.trunk import pad_hidden

Expert = dict[Site, SparseDelta]
STORED_DTYPE = torch.bfloat16


@dataclass
class RoutedModel:
    """Layers m..L-1 with routed projections; every forward pass starts from cached trunk outputs.

    `expert_tasks[id]`: the indices of the tasks whose gate the expert adds up (its membership column).
    """

    backbone: Backbone
    trunk_layers: int
    targets: tuple[str, ...]
    gates: Gates = field(default_factory=Gates)
    experts: dict[str, Expert] = field(default_factory=dict)
    expert_tasks: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites: dict[Site, RoutedLinear] = {}
        for layer in range(self.trunk_layers, self.backbone.num_layers):
            for target in self.targets:
                routed = RoutedLinear(self.backbone.linear(layer, target), self.gates)
                self.backbone.replace(layer, target, routed)
                self.sites[layer, target] = routed

    @classmethod
    def of(cls, backbone: Backbone, bank: Bank, manifest: Manifest) -> RoutedModel:
        """All experts of a generation, frozen."""
        routed = cls(backbone, manifest.trunk_layers, manifest.targets)
        for column, info in enumerate(manifest.experts):
            tensors = bank.load_expert(manifest, info.id)
            expert: Expert = {}
            for name in (n for n in tensors if n.endswith(".blocks")):
                _, layer, target, _ = name.split(".")
                stem = name.removesuffix("blocks")
                shape = manifest.base.target_dims(target)  # type: ignore[arg-type]
                expert[int(layer), target] = SparseDelta(
                    tensors[name], tensors[stem + "A"].float(), tensors[stem + "B"].float(), shape
                )
            routed.add(info.id, expert, [row for row, bits in enumerate(manifest.membership) if bits[column]])
            routed.freeze(info.id)
        return routed

    def add(self, expert_id: str, expert: Expert, tasks: list[int]) -> None:
        self.experts[expert_id] = expert
        self.expert_tasks[expert_id] = tasks
        for site, delta in expert.items():
            self.sites[site].add(expert_id, delta)

    def round_as_stored(self, expert_id: str) -> None:
        """To the bank's precision, so that what is measured is what is published."""
        for delta in self.experts[expert_id].values():
            for parameter in delta.parameters():
                parameter.data = parameter.data.to(STORED_DTYPE).to(parameter.dtype)

    def freeze(self, expert_id: str) -> None:
        for site in self.experts[expert_id]:
            self.sites[site].freeze(expert_id)

    def route(self, task_weights: Tensor) -> None:
        """Set the gates of the next forward pass from task weights `[B, T, tasks]`: `g = p @ M`.

        Experts without a token are skipped.
        """
        by_task = [weights if bool(weights.any()) else None for weights in task_weights.unbind(-1)]
        self.gates.by_expert = {}
        for expert_id, tasks in self.expert_tasks.items():
            active = [by_task[task] for task in tasks if task < len(by_task)]
            found = [weights for weights in active if weights is not None]
            if found:
                self.gates.by_expert[expert_id] = torch.stack(found).sum(0)

    def forward(self, trunk: Sequence[Tensor], task_weights: Sequence[Tensor]) -> Tensor:
        """Trunk outputs `[T_i, d]` and task weights `[T_i, tasks]` of a batch → the last layer's output `[B, T, d]`."""
        self.route(torch.nn.utils.rnn.pad_sequence(list(task_weights), batch_first=True))
        return self.backbone.run(pad_hidden(trunk), self.trunk_layers, self.backbone.num_layers)

    def expert_tensors(self, expert_id: str, dtype: torch.dtype = STORED_DTYPE) -> dict[str, Tensor]:
        """The expert as the bank keeps it (`docs/design.md`)."""
        tensors: dict[str, Tensor] = {}
        for (layer, target), delta in self.experts[expert_id].items():
            stem = f"layers.{layer}.{target}."
            tensors[stem + "blocks"] = delta.blocks.to(torch.int32)
            tensors[stem + "A"] = delta.a.detach().to(dtype)
            tensors[stem + "B"] = delta.b.detach().to(dtype)
        return tensors


@torch.no_grad()
def pool(gate: AnalyticGate, trunk: Tensor) -> Tensor:
    """Prefix means of the gate's evidence over one sequence: `[T, d]` → `[T, c]` float32.

    The values are rounded to the model's dtype first, as the engine's KV cache holds them.
    """
    z, log_weight = gate.evidence(trunk)
    return prefix_mean(z.to(trunk.dtype).float(), log_weight.to(trunk.dtype).float())
