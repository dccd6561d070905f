"""The second pass of every sum over rows: it adds the partial sums that a first kernel wrote.

Two passes need no atomic operations, so the result is the same in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch

TILE_PARTIALS, TILE_COLUMNS = 128, 64


@triton.jit(do_not_specialize=['count', 'octets'])
def _total(partials, total, count, octets, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr):
    width = octets * 8
    columns = tl.program_id(0) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    tile_rows = tl.arange(0, TILE_ROWS)
    partials += tl.program_id(1).to(tl.int64) * count * width
    values = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for start in range(0, count, TILE_ROWS):
        rows = start + tile_rows
        mask = (rows < count)[:, None] & (columns < width)[None, :]
        values += tl.load(partials + rows[:, None] * width + columns[None, :], mask, 0.0)
    total += tl.program_id(1) * width + columns
    tl.store(total, tl.sum(values, 0), columns < width)


def plan_total(partials: Tensor) -> tuple[Tensor, Launch]:
    """Plans the sums of ``partials``, ``(S, count, width)`` in float32, over the second axis.

    Returns:
        The sums, ``(S, width)``, and the launch that computes them.
    """
    groups, count, width = partials.shape
    total = partials.new_empty(groups, width)
    return total, Launch(
        _total,
        (triton.cdiv(width, TILE_COLUMNS), groups),
        dict(partials=partials, total=total, count=count, octets=width // 8),
        dict(TILE_ROWS=TILE_PARTIALS, TILE_COLUMNS=TILE_COLUMNS),
        num_warps=8,
    )
