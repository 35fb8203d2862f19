"""Experts in memory: generations that have an expert in common share it, and only new ones are read.

An expert's object never changes, so the next generation of a bank, which has all experts of the one before and one task
more, costs the memory and the time of that task. An expert goes with the last generation that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from adapters.bank import ExpertInfo, Manifest
from seta_runtime.ops.experts import Blocks

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

    def take(
        self, manifest: Manifest, info: ExpertInfo, with_mixtures: bool, is_stored: bool, read: Callable[[], Sites]
    ) -> KeptExpert:
        """The expert; `read` gives it, verified, where it is not in memory or is not stored any more, an error."""
        key = (with_mixtures, *_verified_as(manifest, info))
        found = self._kept.get(key)
        if found is None or not is_stored:
            found = self._kept[key] = KeptExpert(read())
        return found


def _verified_as(manifest: Manifest, info: ExpertInfo) -> tuple[object, ...]:
    """All that `check_expert` compares an object with: what was right for one manifest need not be for another."""
    layout = (manifest.block_size, manifest.trunk_layers, manifest.targets, manifest.base)
    return (*info.ref, info.rank, info.num_blocks, *layout)
