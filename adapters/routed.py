"""A backbone with experts in it: the training-side counterpart of the serving engine's routed layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest, expert_sites
from adapters.blocks import Block, Site, blocks_at
from adapters.evidence import Gate, prefix_mean
from adapters.sparse_lora import Gates, RoutedLinear, SparseDelta
from adapters.trunk import pad_hidden

Expert = dict[Site, SparseDelta]
STORED_DTYPE = torch.bfloat16


@dataclass
class RoutedModel:
    """Layers m..L-1 with routed projections; every forward pass starts from cached trunk outputs.

    `expert_tasks[id]`: the indices of the tasks whose gate the expert adds up (its membership column). Experts are in
    the manifest's order. `dtypes[id]`: what an expert is stored in. `is_routed_by_expert`: the gate's columns are the
    experts themselves, not the tasks.
    """

    backbone: Backbone
    trunk_layers: int
    targets: tuple[str, ...]
    is_routed_by_expert: bool = False
    gates: Gates = field(default_factory=Gates)
    experts: dict[str, Expert] = field(default_factory=dict)
    expert_tasks: dict[str, list[int]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

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
        routed = cls(backbone, manifest.trunk_layers, manifest.targets, manifest.gate.kind == "softmax")
        for info, tasks in zip(manifest.experts, manifest.tasks_by_expert, strict=True):
            expert: Expert = {}
            dtype = STORED_DTYPE
            for site in expert_sites(bank.load_expert(manifest, info)):
                shape, dtype = manifest.base.target_dims(site.target), site.a.dtype
                expert[site.layer, site.target] = SparseDelta(site.blocks, site.a.float(), site.b.float(), shape)
            routed.add(info.id, expert, tasks, dtype)
            routed.freeze(info.id)
        return routed

    def compile_layers(self, has_single_rows: bool = False) -> None:
        """`Backbone.compile_layers`, with the routed projections as they are. Raises DataError."""
        for routed in self.sites.values():
            routed.stay_eager()
        self.backbone.compile_layers(has_single_rows)

    def add(self, expert_id: str, expert: Expert, tasks: list[int], dtype: torch.dtype = STORED_DTYPE) -> None:
        self.experts[expert_id] = expert
        self.expert_tasks[expert_id] = tasks
        self.dtypes[expert_id] = dtype
        for site, delta in expert.items():
            self.sites[site].add(expert_id, delta)

    def remove(self, expert_id: str) -> None:
        for site in self.experts[expert_id]:
            self.sites[site].remove(expert_id)
        del self.experts[expert_id], self.expert_tasks[expert_id], self.dtypes[expert_id]

    def part(self, expert_id: str, blocks: Mapping[Site, Tensor]) -> Expert:
        """A copy of an expert's rows on these of its blocks, per site `[n, 2]`."""
        return {site: self.experts[expert_id][site].take(found) for site, found in blocks.items()}

    def split(self, expert_id: str, shared_id: str, shared: Mapping[Site, Tensor], task: int) -> None:
        """Cut an expert in two (eq. 7): its rows on the blocks `shared` become `shared_id`, which `task` uses as well.

        The rest keeps its id and its very values, and goes if nothing is left of it. Both are frozen.
        """
        parent, tasks, dtype = self.experts[expert_id], self.expert_tasks[expert_id], self.dtypes[expert_id]
        cut = self.part(expert_id, shared)
        rest: Expert = {site: kept for site, delta in parent.items() if (kept := delta.without(shared.get(site)))}
        if rest:
            for site in parent:
                self.sites[site].remove(expert_id)
            self.add(expert_id, rest, tasks, dtype)  # an id keeps its place among the experts
            self.freeze(expert_id)
        else:
            self.remove(expert_id)
        self.add(shared_id, cut, [*tasks, task], dtype)
        self.freeze(shared_id)

    def blocks(self) -> dict[str, frozenset[Block]]:
        """Which sub-blocks each expert holds."""
        return {
            expert_id: blocks_at({site: delta.blocks for site, delta in expert.items()})
            for expert_id, expert in self.experts.items()
        }

    def round_as_stored(self, expert_id: str) -> None:
        """To the bank's precision, so that what is measured is what is published."""
        for delta in self.experts[expert_id].values():
            for parameter in delta.parameters():
                parameter.data = parameter.data.to(self.dtypes[expert_id]).to(parameter.dtype)

    def freeze(self, expert_id: str) -> None:
        for site in self.experts[expert_id]:
            self.sites[site].freeze(expert_id)

    def thaw(self, expert_id: str) -> None:
        for site in self.experts[expert_id]:
            self.sites[site].thaw(expert_id)

    def route(self, weights: Tensor) -> None:
        """Set the gates of the next forward pass from the gate's weights `[B, T, columns]`.

        A task's weight is the gate of every expert it composes, which sums up to `g = p @ M`. Columns without a token
        are skipped.
        """
        self.gates.active = [
            (self._experts_of(column), gate) for column, gate in enumerate(weights.unbind(-1)) if bool(gate.any())
        ]

    def _experts_of(self, column: int) -> tuple[str, ...]:
        if self.is_routed_by_expert:
            return (list(self.experts)[column],)
        return tuple(expert_id for expert_id, tasks in self.expert_tasks.items() if column in tasks)

    def forward(self, trunk: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """Trunk outputs `[T_i, d]` and the gate's weights `[T_i, columns]` of a batch → the last output `[B, T, d]`."""
        self.route(torch.nn.utils.rnn.pad_sequence(list(weights), batch_first=True))
        return self._run(pad_hidden(trunk))

    def forward_with(self, trunk: Sequence[Tensor], expert_ids: tuple[str, ...]) -> Tensor:
        """The same with these experts on at every token, and no other."""
        hidden = pad_hidden(trunk)
        self.gates.active = [(expert_ids, torch.ones(hidden.shape[:2]))]
        return self._run(hidden)

    def _run(self, hidden: Tensor) -> Tensor:
        return self.backbone.run(hidden, self.trunk_layers, self.backbone.num_layers)

    @contextmanager
    def base_gradients(self) -> Iterator[dict[Site, Tensor]]:
        """While open, the frozen weights of the targets, by site, collect gradients."""
        weights = {site: routed.base.weight for site, routed in self.sites.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            yield weights
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
                weight.grad = None

    def expert_tensors(self, expert_id: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The expert as the bank keeps it (`docs/design.md`)."""
        dtype = dtype or self.dtypes[expert_id]
        tensors: dict[str, Tensor] = {}
        for (layer, target), delta in self.experts[expert_id].items():
            stem = f"layers.{layer}.{target}."
            tensors[stem + "blocks"] = delta.blocks.to(torch.int32)
            tensors[stem + "A"] = delta.a.detach().to(dtype)
            tensors[stem + "B"] = delta.b.detach().to(dtype)
        return tensors


@torch.no_grad()
def pool(gate: Gate, trunk: Tensor) -> Tensor:
    """Prefix means of the gate's evidence over one sequence: `[T, d]` → `[T, c]` float32.

    The values are rounded to the model's dtype first, as the engine's KV cache holds them.
    """
    z, log_weight = gate.evidence(trunk)
    return prefix_mean(z.to(trunk.dtype).float(), log_weight.to(trunk.dtype).float())
