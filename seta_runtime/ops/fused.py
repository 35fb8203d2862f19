"""The routed update for a GPU: fixed buffers that the router fills once per step, one kernel call a projection.

Nothing here depends on data in Python: shapes follow from the number of tokens alone, and every tensor that a call
reads keeps its address while generations come and go. So a call may be recorded in a CUDA graph and traced by
torch.compile. `seta_runtime.ops.cpu` is the path for a CPU; `seta_runtime.ops.reference` is what both must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seta_runtime.ops.blocks import SparseBlocks

TOKENS = 16
"""Tokens of a tile: the least that a tensor core multiplies."""
RANKS = 16
"""Rank rows of a rank block; an expert's last one is filled up with zeros."""


def is_selected(device: torch.device) -> bool:
    """Whether layers on this device use the kernel."""
    return device.type == "cuda"


@dataclass(frozen=True)
class RankBlocks:
    """One generation's experts on one projection, as the kernel reads them.

    `a`, `b` `[blocks, RANKS, l]`: a sub-block's rank rows, B transposed, RANKS at a time; sorted by expert, then by
    grid row. `places [blocks]` int32: the sub-block's grid column. `starts [experts, rows + 1]` int32: where each
    expert's rank blocks of a grid row begin; `starts[e, -1]` is where its last ones end.
    """

    a: Tensor
    b: Tensor
    places: Tensor
    starts: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.a, self.b, self.places, self.starts))


def rank_blocks(
    experts: Sequence[SparseBlocks | None], shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> RankBlocks:
    """Lay out the experts of one projection `W0 [d_out, d_in]`; `experts[e]` is None where e has no block here."""
    size = next(expert.a.shape[-1] for expert in experts if expert is not None)
    num_rows = shape[0] // size
    a, b, places, starts, total = [], [], [], [], 0
    for expert in experts:
        counts = torch.zeros(num_rows, dtype=torch.int64)
        if expert is not None:
            pieces = -(-expert.a.shape[1] // RANKS)
            a.append(_cut(expert.a, pieces))
            b.append(_cut(expert.b.transpose(1, 2), pieces))
            places.append(expert.blocks[:, 1].repeat_interleave(pieces))
            counts = torch.bincount(expert.blocks[:, 0].long(), minlength=num_rows) * pieces
        starts.append(total + torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))
        total += int(counts.sum())
    return RankBlocks(
        torch.cat(a).to(device, dtype),
        torch.cat(b).to(device, dtype),
        torch.cat(places).to(device, torch.int32),
        torch.stack(starts).to(device, torch.int32),
    )


def _cut(rows: Tensor, pieces: int) -> Tensor:
    """`[n, r, l]` → `[n * pieces, RANKS, l]`, with rows of zeros at each sub-block's end."""
    filled = torch.nn.functional.pad(rows, (0, 0, 0, pieces * RANKS - rows.shape[1]))
    return filled.reshape(-1, RANKS, rows.shape[2])


class SlotTables:
    """Where the kernel finds the experts of one projection, by column: expert e of slot s is column `s * E + e`.

    `starts [slots * E, rows + 1]` int32, `pointers [slots, 3]` int64: addresses of a slot's `a`, `b` and `places`.
    Both stay where they are; a slot is filled and emptied in place, between two steps.
    """

    def __init__(self, step: FusedStep, d_out: int) -> None:
        device, rows = step.gates.device, d_out // step.block_size
        self.experts_per_slot = step.experts_per_slot
        self.starts = torch.zeros(step.gates.shape[1], rows + 1, dtype=torch.int32, device=device)
        self.pointers = torch.zeros(step.num_slots, 3, dtype=torch.int64, device=device)
        self._held: list[RankBlocks | None] = [None] * step.num_slots  # what the pointers point to must stay

    def put(self, slot: int, blocks: RankBlocks | None) -> None:
        """Fill a slot; None empties it."""
        first = slot * self.experts_per_slot
        self.starts[first : first + self.experts_per_slot] = 0
        if blocks is not None:
            assert len(blocks.starts) <= self.experts_per_slot, "the layout was checked when the generation was read"
            self.starts[first : first + len(blocks.starts)] = blocks.starts
            addresses = [t.data_ptr() for t in (blocks.a, blocks.b, blocks.places)]
            self.pointers[slot] = torch.tensor(addresses, dtype=torch.int64)
        self._held[slot] = blocks


class FusedStep:
    """What the router leaves for the kernel, in buffers that stay where they are.

    `gates [max_tokens, slots * E]` float32, 0 for base; per tile of TOKENS tokens the columns with any gate above
    zero: their number `counts [tiles]` and, first in `columns [tiles, slots * E]`, which; both int32.
    """

    def __init__(
        self, max_tokens: int, num_slots: int, experts_per_slot: int, block_size: int, device: torch.device
    ) -> None:
        tiles, columns = -(-max_tokens // TOKENS), num_slots * experts_per_slot
        self.num_slots = num_slots
        self.experts_per_slot = experts_per_slot
        self.block_size = block_size
        self.gates = torch.zeros(tiles * TOKENS, columns, device=device)
        self.counts = torch.zeros(tiles, dtype=torch.int32, device=device)
        self.columns = torch.zeros(tiles, columns, dtype=torch.int32, device=device)

    def clear(self, num_tokens: int) -> None:
        """The step's tokens are all base, until `write` and `finish` say otherwise."""
        tiles = -(-num_tokens // TOKENS)
        self.gates[: tiles * TOKENS].zero_()
        self.counts[:tiles].zero_()

    def write(self, slot: int, rows: Tensor | None, gates: Tensor) -> None:
        """The gates `[n, experts]` of one slot's tokens; rows `[n]` int64, None for the step's first n."""
        first = slot * self.experts_per_slot
        mine = self.gates[:, first : first + gates.shape[1]]
        if rows is None:
            mine[: len(gates)] = gates
        else:
            mine.index_copy_(0, rows, gates)

    def finish(self, num_tokens: int) -> None:
        """List each tile's active columns, once per step for all layers."""
        tiles = -(-num_tokens // TOKENS)
        active = (self.gates[: tiles * TOKENS] != 0).view(tiles, TOKENS, -1).any(1)
        self.counts[:tiles] = active.sum(1)
        self.columns[:tiles] = active.byte().argsort(dim=1, descending=True, stable=True)


def add_routed(y: Tensor, x: Tensor, step: FusedStep, tables: SlotTables) -> None:
    """`y[t] += sum_c gates[t, c] B_c (A_c x[t])` over all columns c, in place; rows without a gate are not touched.

    y `[T, d_out]` (a view of the packed output is fine), x `[T, d_in]` of the experts' dtype.
    """
    torch.ops.seta.add_routed(
        y,
        x,
        step.gates,
        step.counts,
        step.columns,
        tables.starts,
        tables.pointers,
        step.experts_per_slot,
        step.block_size,
    )


def _launch(
    y: Tensor,
    x: Tensor,
    gates: Tensor,
    counts: Tensor,
    columns: Tensor,
    starts: Tensor,
    pointers: Tensor,
    experts_per_slot: int,
    block_size: int,
) -> None:
    from seta_runtime.ops.triton_kernel import add_routed_kernel  # Triton is imported where a kernel runs

    assert y.stride(1) == 1 and x.stride(1) == 1, "rows are contiguous"
    num_rows = starts.shape[1] - 1
    add_routed_kernel[(-(-len(x) // TOKENS), num_rows)](
        y,
        x,
        gates,
        counts,
        columns,
        starts,
        pointers,
        len(x),
        y.stride(0),
        x.stride(0),
        gates.shape[1],
        experts_per_slot,
        num_rows,
        block_size,
        TOKENS=TOKENS,
        RANKS=RANKS,
        EDGE=max(16, 1 << (block_size - 1).bit_length()),
        IN_FLOAT32=not x.is_cuda,
    )


def _launch_fake(y: Tensor, x: Tensor, *_: object) -> None:
    """Nothing to trace: y is changed in place."""


torch.library.define(
    "seta::add_routed",
    "(Tensor(a!) y, Tensor x, Tensor gates, Tensor counts, Tensor columns, Tensor starts, Tensor pointers, "
    "int experts_per_slot, int block_size) -> ()",
)
for _key in ("CUDA", "CPU"):  # on a CPU it runs in Triton's interpreter, and only there
    torch.library.impl("seta::add_routed", _key, _launch)
torch.library.register_fake("seta::add_routed", _launch_fake)
