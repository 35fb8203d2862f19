"""The routed update as one Triton kernel: shrink, gate and expand in registers, nothing written in between.

One program owns a tile of tokens and one row of the sub-block grid, so it alone writes that piece of y: no atomics, the
same sum every time. It runs through the experts that have a gate above zero for any of the tile's tokens
(`seta_runtime.ops.fused` lists them) and through the rank blocks that each has in this row of the grid; what the tile
has no gate for is never read. It has run in Triton's interpreter only, never on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_routed_kernel(
    y,
    x,
    gates,
    counts,
    columns,
    starts,
    pointers,
    num_tokens,
    y_stride,
    x_stride,
    num_columns,
    experts_per_slot,
    num_rows,
    block_size,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    EDGE: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
):
    """`y[t] += sum_e gates[t, e] B_e (A_e x[t])`; grid (tiles of TOKENS tokens, rows of the sub-block grid).

    The arguments are those of `seta_runtime.ops.fused.add_routed`. RANKS: rank rows of a rank block; EDGE: the least
    power of two that holds a sub-block's edge, `block_size`; IN_FLOAT32: multiply widened operands, for
    Triton's interpreter, whose products of bfloat16 are wrong.
    """
    tile = tl.program_id(0)
    row = tl.program_id(1)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    rank = tl.arange(0, RANKS)
    edge = tl.arange(0, EDGE)
    is_token = token < num_tokens
    is_edge = edge < block_size
    update = tl.full([TOKENS, EDGE], 0.0, tl.float32)
    is_routed = tl.full([TOKENS], 0, tl.int1)
    x_rows = x + token.to(tl.int64)[:, None] * x_stride + edge[None, :]
    for i in range(tl.load(counts + tile)):
        column = tl.load(columns + tile * num_columns + i)
        gate = tl.load(gates + token.to(tl.int64) * num_columns + column, mask=is_token, other=0.0)
        is_routed = is_routed | (gate != 0.0)
        table = pointers + (column // experts_per_slot) * 3
        a = tl.load(table).to(tl.pointer_type(x.dtype.element_ty))
        b = tl.load(table + 1).to(tl.pointer_type(x.dtype.element_ty))
        places = tl.load(table + 2).to(tl.pointer_type(tl.int32))
        first = tl.load(starts + column * (num_rows + 1) + row)
        last = tl.load(starts + column * (num_rows + 1) + row + 1)
        for block in range(first, last):
            place = tl.load(places + block) * block_size
            inputs = tl.load(x_rows + place, mask=is_token[:, None] & is_edge[None, :], other=0.0)
            rank_rows = (block * RANKS + rank.to(tl.int64)) * block_size
            shrink = tl.load(a + rank_rows[None, :] + edge[:, None], mask=is_edge[:, None], other=0.0)
            expand = tl.load(b + rank_rows[:, None] + edge[None, :], mask=is_edge[None, :], other=0.0)
            if IN_FLOAT32:
                inputs, shrink = inputs.to(tl.float32), shrink.to(tl.float32)
            shrunk = (tl.dot(inputs, shrink, input_precision="ieee") * gate[:, None]).to(expand.dtype)
            if IN_FLOAT32:
                shrunk, expand = shrunk.to(tl.float32), expand.to(tl.float32)
            update += tl.dot(shrunk, expand, input_precision="ieee")
    where = y + token.to(tl.int64)[:, None] * y_stride + row * block_size + edge[None, :]
    mask = is_routed[:, None] & is_edge[None, :]
    total = tl.load(where, mask=mask, other=0.0).to(tl.float32) + update
    tl.store(where, total.to(y.dtype.element_ty), mask=mask)
