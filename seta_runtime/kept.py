"""Experts in memory: generations that have an expert in common share it, and only new ones are unpacked.

An expert's object never changes, so the next generation of a bank, which has all experts of the one before and one task
more, costs the memory and the time of that task. An expert goes with the last generation that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakValueDictionary

import torch

from adapters.bank import Bank, ExpertInfo, Manifest, expert_sites
from seta_runtime.ops import fused
from seta_runtime.ops.blocks import SparseBlocks
from seta_runtime.ops.experts import Blocks, ProjectionExperts, pack, prepared
from seta_runtime.ops.paired import PairedExperts
from seta_runtime.ranks import Part, Ranks

PackedExperts = PairedExperts | ProjectionExperts | fused.RankBlocks
"""One projection's experts: for a CPU's compiled product, for torch, for a GPU."""

Sites = dict[tuple[int, str], Blocks]
"""An expert's blocks by layer and target."""


@dataclass(frozen=True, eq=False)
class KeptExpert:
    """One expert's blocks, as the layers of this process read them."""

    sites: Sites


class KeptExperts:
    """Whatever a generation in memory holds; one of these a process, whose layers all want the same form."""

    def __init__(self) -> None:
        self._kept: WeakValueDictionary[tuple[object, ...], KeptExpert] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, reader: ExpertReader, info: ExpertInfo) -> KeptExpert:
        """The expert. Of one that is in memory the file is still compared with its digest: the next start needs it.

        Raises a BankError.
        """
        key = reader.verified_as(info)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = KeptExpert(reader.read(info))
        else:
            reader.bank.check_bytes(info.ref)
        return found


@dataclass(frozen=True)
class ExpertReader:
    """Of one generation's experts, for the layers of this rank."""

    bank: Bank
    manifest: Manifest
    dtype: torch.dtype
    device: torch.device
    ranks: Ranks
    with_mixtures: bool

    def verified_as(self, info: ExpertInfo) -> tuple[object, ...]:
        """All that its bytes are compared with and its form depends on; another manifest may say something else."""
        manifest = self.manifest
        layout = (manifest.block_size, manifest.trunk_layers, manifest.targets, manifest.base, self.with_mixtures)
        return (*info.ref, info.rank, info.num_blocks, *layout)

    def read(self, info: ExpertInfo) -> Sites:
        """Raises a BankError."""
        sites: Sites = {}
        for site in expert_sites(self.bank.load_expert(self.manifest, info)):
            part = self._parts[site.target]
            whole = SparseBlocks(site.blocks, site.a, site.b)
            mine = whole if self.ranks.is_alone else whole.cut(part.rows, part.columns)
            if mine is not None:
                sites[site.layer, site.target] = prepared(mine, self.dtype, self.device, self.with_mixtures)
        return sites

    def pack(self, experts: Sequence[KeptExpert], members: list[list[int]]) -> dict[tuple[int, str], PackedExperts]:
        """`experts` in the manifest's order; `members[t]`: task t's, where a step reads whole tasks and no mixture."""
        keys = sorted({key for expert in experts for key in expert.sites})
        return {key: self._packed(key[1], [expert.sites.get(key) for expert in experts], members) for key in keys}

    def _packed(self, target: str, blocks: list[Blocks | None], members: list[list[int]]) -> PackedExperts:
        shape = self._parts[target].shape
        if not fused.is_selected(self.device):
            return pack(blocks, members, shape, self.dtype, self.device, self.with_mixtures)
        sparse = [None if mine is None else mine.sparse() for mine in blocks]
        return fused.rank_blocks(sparse, shape, self.dtype, self.device)

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {target: self.ranks.part(self.manifest.base, target) for target in self.manifest.targets}
