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
    _fields_ = [(name, ctypes.c_void_p) for name in ("a", "b", "place", "order", "first")] + [  # noqa: RUF012
        (name, ctypes.c_int64) for name in ("size", "rank")
    ]


class _Group(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_void_p)] + [(name, ctypes.c_int64) for name in ("start", "count", "task")]  # noqa: RUF012


class TaskRows:
    """A generation's tokens of a step, by task. Made once a step and read by every projection."""

    def __init__(self, groups: Sequence[tuple[int, Tensor | range]]) -> None:
        """`groups`: a task and its tokens' rows, ascending `[n]` int64, or a range of neighbours."""
        self._kept = [rows for _, rows in groups]
        self._groups = (_Group * len(groups))(*(_group(task, rows) for task, rows in groups))
        self.address, self.count = ctypes.addressof(self._groups), len(groups)
        self.stop = max((int(rows[-1]) + 1 for _, rows in groups if len(rows)), default=0)
        self.last_task = max((task for task, _ in groups), default=-1)

    @classmethod
    def of(cls, groups: Sequence[tuple[int, Tensor | None]], num_tokens: int) -> TaskRows:
        """None for all of the step's tokens."""
        return cls([(task, range(num_tokens) if rows is None else neighbours(rows) or rows) for task, rows in groups])


def neighbours(rows: Tensor) -> range | None:
    """Ascending rows `[n]` as a range if they lie side by side, as a prompt's do: then nothing needs picking."""
    if not len(rows):
        return None
    first, stop = int(rows[0]), int(rows[-1]) + 1
    return range(first, stop) if stop - first == len(rows) else None


def _group(task: int, rows: Tensor | range) -> _Group:
    if isinstance(rows, range):
        return _Group(None, rows.start, len(rows), task)
    assert rows.dtype == torch.int64 and rows.is_contiguous()
    return _Group(rows.data_ptr(), 0, len(rows), task)


class PairedStack:
    """Sub-blocks of one size and one rank of a projection: `a [n, size / 2, rank, 2]`, `b [n, rank / 2, size, 2]`."""

    def __init__(self, experts: Sequence[tuple[int, SparseBlocks]], members: Sequence[Sequence[int]]) -> None:
        """`experts`: at least one, by index; `members[t]`: task t's experts."""
        a = torch.cat([_padded(mine.a, 1) for _, mine in experts]).bfloat16()
        b = torch.cat([_padded(mine.b, 2) for _, mine in experts]).bfloat16()
        count, rank, size = a.shape
        self.a = a.view(count, rank, size // 2, 2).transpose(1, 2).contiguous()
        self.b = b.view(count, size, rank // 2, 2).transpose(1, 2).contiguous()
        self.place = torch.cat([mine.blocks for _, mine in experts]).to(torch.int32).contiguous()
        orders = _orders(self.place, experts, members)
        self.order = torch.tensor([*itertools.chain.from_iterable(orders)], dtype=torch.int32)
        self.first = torch.tensor([0, *itertools.accumulate(map(len, orders))])
        tensors = (self.a, self.b, self.place, self.order, self.first)
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        self._projection = _Projection(*(tensor.data_ptr() for tensor in tensors), size, rank)
        self.address = ctypes.addressof(self._projection)
        self.num_tasks = len(members)
        self.num_outputs, self.num_inputs = ((self.place.amax(0) + 1) * size).tolist()


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


def can_pair(experts: Sequence[SparseBlocks], dtype: torch.dtype) -> bool:
    """Whether the compiled product is there and takes these."""
    return (
        dtype == torch.bfloat16
        and len(experts) > 0
        and all(e.a.shape[2] % LANES == 0 and max(e.a.shape[1:]) <= MOST for e in experts)
        and product() is not None
    )


def pair(experts: Sequence[tuple[int, SparseBlocks]], members: Sequence[Sequence[int]]) -> PairedExperts:
    """`experts` by index, what `can_pair` holds for; `members[t]`: task t's experts, all of them among those."""
    ranks = sorted({mine.a.shape[1] for _, mine in experts})
    return PairedExperts(
        [PairedStack([(e, mine) for e, mine in experts if mine.a.shape[1] == rank], members) for rank in ranks]
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
    stack, tokens = PairedStack([(0, blocks)], [[0]]), TaskRows([(0, torch.arange(0, 37, 2)), (0, range(1, 21))])
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
    place: Tensor, experts: Sequence[tuple[int, SparseBlocks]], members: Sequence[Sequence[int]]
) -> list[list[int]]:
    """For each task its experts' blocks, by place: those of a block row one after another."""
    places, start, spans = place.tolist(), 0, {}
    for expert, mine in experts:
        spans[expert] = range(start, start + len(mine.blocks))
        start += len(mine.blocks)
    return [
        sorted(itertools.chain.from_iterable(spans.get(e, ()) for e in mine), key=lambda block: places[block])
        for mine in members
    ]
