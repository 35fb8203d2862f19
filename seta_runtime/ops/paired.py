"""Sub-blocks in the layout of the compiled product (`sub_blocks.c`): pairs of neighbours side by side.

It takes any number of tokens of any tasks in one call and reads the bank's own values, each once for 64 tokens. Where
the processor or the machine cannot have it, `experts.py` holds the forms that torch multiplies.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from seta_runtime.ops import compiler
from seta_runtime.ops.blocks import SparseBlocks
from seta_runtime.ops.task_rows import TaskRows

logger = logging.getLogger("seta.runtime")

LANES, MOST = 16, 256
"""A block's size and its rank are multiples of LANES, ranks by zeros if need be, and at most MOST."""

_SOURCE = "sub_blocks.c"
_COMMON = {"avx512_bf16", "avx512vl", "avx512bw"}  # the last since a compiler's flag for the first implies it
_VARIANTS = (
    ({"amx_tile", "amx_bf16", *_COMMON}, ("-mamx-tile", "-mamx-bf16")),
    (_COMMON, ()),
)
"""What the processor must have, and the compiler's flags besides COMMON_FLAGS; the fastest first."""
COMMON_FLAGS = ("-mavx512f", "-mavx512vl", "-mavx512bf16")

Product = Callable[[int, int, int, int, int, int, int], None]
"""`seta_add` of `sub_blocks.c`."""


class _Projection(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("blocks", "first")] + [  # noqa: RUF012
        (name, ctypes.c_int64) for name in ("size", "rank")
    ]


@dataclass(frozen=True, eq=False)
class PairedBlocks:
    """One expert's sub-blocks on one projection: `a [n, size / 2, rank, 2]`, `b [n, rank / 2, size, 2]` bfloat16,
    `place [n, 2]` int32. All generations in memory that have the expert read the same ones.
    """

    a: Tensor
    b: Tensor
    place: Tensor

    @classmethod
    def of(cls, mine: SparseBlocks) -> PairedBlocks:
        """What `can_pair` holds for. The rank is padded by zeros up to a multiple of LANES."""
        a, b = _padded(mine.a, 1).bfloat16(), _padded(mine.b, 2).bfloat16()
        count, rank, size = a.shape
        return cls(
            a.view(count, rank, size // 2, 2).transpose(1, 2).contiguous(),
            b.view(count, size, rank // 2, 2).transpose(1, 2).contiguous(),
            mine.blocks.to(torch.int32).clone(memory_format=torch.contiguous_format),
        )

    @property
    def size(self) -> int:
        return self.b.shape[2]

    @property
    def rank(self) -> int:
        return self.a.shape[2]

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes + self.place.nbytes

    def sparse(self) -> SparseBlocks:
        """As `of` got them, but for the padding."""
        return SparseBlocks(self.place, self.a.transpose(1, 2).flatten(2), self.b.transpose(1, 2).flatten(2))

    def table(self) -> Tensor:
        """`[n, 3]` int64: C's `block`, the addresses of a block's A and B, and its place."""
        step = torch.arange(len(self.place)) * (self.size * self.rank * self.a.element_size())
        return torch.stack([self.a.data_ptr() + step, self.b.data_ptr() + step, self.place.view(torch.int64)[:, 0]], 1)


class PairedStack:
    """Experts of one block size and one rank on a projection: which blocks each task reads, in the product's order."""

    def __init__(self, experts: Sequence[tuple[int, PairedBlocks]], members: Sequence[Sequence[int]]) -> None:
        """`experts`: at least one, by index; `members[t]`: task t's experts."""
        self.experts = [mine for _, mine in experts]
        size, rank = self.experts[0].size, self.experts[0].rank
        places = torch.cat([mine.place for mine in self.experts])
        orders = _orders(places, experts, members)
        table = torch.cat([mine.table() for mine in self.experts])
        self.blocks = table[torch.tensor([*itertools.chain.from_iterable(orders)], dtype=torch.int64)].contiguous()
        self.first = torch.tensor([0, *itertools.accumulate(map(len, orders))])
        self._projection = _Projection(self.blocks.data_ptr(), self.first.data_ptr(), size, rank)
        self.address = ctypes.addressof(self._projection)
        self.num_tasks = len(members)
        self.num_outputs, self.num_inputs = ((places.amax(0) + 1) * size).tolist()
        # Here, in the thread that loads: it is asked for between two steps.
        self.nbytes = self.blocks.nbytes + self.first.nbytes + sum(mine.nbytes for mine in self.experts)


@dataclass(frozen=True)
class PairedExperts:
    """All experts of one generation on one projection, in stacks by rank."""

    stacks: list[PairedStack]

    @property
    def nbytes(self) -> int:
        return sum(stack.nbytes for stack in self.stacks)

    def add(self, y: Tensor, x: Tensor, tokens: TaskRows) -> None:
        """`y[row] += ΔW of its task x[row]`, in place, for the rows in `tokens`.

        y `[T, d_out]`, a view of the packed output is fine, and x `[T, d_in]`, bfloat16.
        """
        assert y.dtype == x.dtype == torch.bfloat16 and y.stride(1) == x.stride(1) == 1
        multiply = product()
        assert multiply is not None
        assert tokens.stop <= len(x) == len(y)
        y_at, y_stride, x_at, x_stride = y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0)
        for stack in self.stacks:  # what is outside is anybody's memory
            assert stack.num_outputs <= y.shape[1] and stack.num_inputs <= x.shape[1]
            assert tokens.last_task < stack.num_tasks
            multiply(y_at, y_stride, x_at, x_stride, stack.address, tokens.address, tokens.count)


def can_pair(mine: SparseBlocks, dtype: torch.dtype) -> bool:
    """Whether the compiled product is there and takes these."""
    _, rank, size = mine.a.shape
    return dtype == torch.bfloat16 and size % LANES == 0 and max(rank, size) <= MOST and product() is not None


def pair(experts: Sequence[tuple[int, PairedBlocks]], members: Sequence[Sequence[int]]) -> PairedExperts:
    """`experts` by index; `members[t]`: task t's experts, all of them among those."""
    kinds = sorted({(mine.size, mine.rank) for _, mine in experts})
    return PairedExperts(
        [PairedStack([(e, one) for e, one in experts if (one.size, one.rank) == kind], members) for kind in kinds]
    )


@functools.cache
def product() -> Product | None:
    """The compiled product, or None where the processor or the machine cannot have it. Compiles at the first call."""
    found = compiler.processor_flags()
    for needed, flags in _VARIANTS:
        if not needed <= found:
            continue
        try:
            multiply = _load((*COMMON_FLAGS, *flags))
            _check(multiply)
        except (OSError, subprocess.SubprocessError, AttributeError, ArithmeticError) as error:
            logger.warning("experts cannot be multiplied with %s: %s", ", ".join(sorted(needed)), error)
            continue
        return multiply
    return None


def _load(flags: Sequence[str]) -> Product:
    """Raises: OSError, SubprocessError; AttributeError if the library is another."""
    library = compiler.library(_SOURCE, flags)
    if library.seta_prepare():
        raise OSError("the system does not give this process the processor's tiles")
    function = library.seta_add
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, number, pointer, number, pointer, pointer, number)
    function.restype = None
    return function


def _check(multiply: Product) -> None:
    """One update against torch's. Raises: ArithmeticError; what a compiler got wrong must not answer anybody."""
    generator = torch.Generator().manual_seed(0)
    a, b, x = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((2, 32, 64), (2, 64, 32), (37, 128)))
    blocks = SparseBlocks(torch.tensor([[0, 0], [1, 1]]), a, b)
    stack = PairedStack([(0, PairedBlocks.of(blocks))], [[0]])
    tokens = TaskRows([(0, torch.arange(0, 37, 2)), (0, range(1, 21))])
    y = torch.zeros(37, 128, dtype=torch.bfloat16)
    multiply(y.data_ptr(), 128, x.data_ptr(), 128, stack.address, tokens.address, tokens.count)
    expected = torch.zeros(37, 128)
    for row in [*range(0, 37, 2), *range(1, 21)]:
        expected[row] += blocks.dense((128, 128)) @ x[row].float()
    if not torch.allclose(y.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max())):
        raise ArithmeticError("its results differ from torch's")


def _padded(matrix: Tensor, dimension: int) -> Tensor:
    """Zeros after the last rank, up to a multiple of LANES."""
    missing = -matrix.shape[dimension] % LANES
    return pad(matrix, (0, 0, 0, missing) if dimension == 1 else (0, missing))


def _orders(
    place: Tensor, experts: Sequence[tuple[int, PairedBlocks]], members: Sequence[Sequence[int]]
) -> list[list[int]]:
    """For each task its experts' blocks, by place: those of a block row one after another."""
    places, start, spans = place.tolist(), 0, {}
    for expert, mine in experts:
        spans[expert] = range(start, start + len(mine.place))
        start += len(mine.place)
    return [
        sorted(itertools.chain.from_iterable(spans.get(e, ()) for e in mine), key=lambda block: places[block])
        for mine in members
    ]
