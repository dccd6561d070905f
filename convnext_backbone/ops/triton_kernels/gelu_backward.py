"""The backward pass of the GELU, with that of GRN and the gradient of the first bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, run_plan
from .partials import plan_total
from .tiles import TILE_WARPS, check_contiguous, column_tile, count_partials


@triton.jit(
    do_not_specialize=['rows', 'octets'],
    do_not_specialize_on_alignment=['scale', 'shift', 'partials'],
)
def _gelu_backward(
    grad,
    inner,
    scale,
    shift,
    hidden,
    partials,
    rows,
    octets,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    channels = octets * 8
    sample = tl.program_id(2)
    columns = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = columns < channels
    tile_rows = tl.arange(0, TILE_ROWS)
    places = tile_rows[:, None] * channels + columns[None, :]
    if scale is not None:
        samples = sample * channels + columns
        factor = tl.load(scale + samples, inside, 0.0)[None, :]
        term = tl.load(shift + samples, inside, 0.0)[None, :]
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * TILE_ROWS, rows, tl.num_programs(0) * TILE_ROWS):
        first = (sample * tl.cast(rows, tl.int64) + start) * channels
        mask = (start + tile_rows < rows)[:, None] & inside[None, :]
        x = tl.load(inner + first + places, mask, 0.0).to(tl.float32)
        outer = tl.load(grad + first + places, mask, 0.0).to(tl.float32)
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        activated = x * share
        tl.store(hidden + first + places, activated.to(hidden.dtype.element_ty), mask)
        if scale is not None:
            outer = outer * factor + activated * term
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        new = (outer * (share + x * density)).to(grad.dtype.element_ty)
        tl.store(grad + first + places, new, mask)
        total += tl.where(mask, new.to(tl.float32), 0.0)
    partials += (sample * tl.num_programs(0) + tl.program_id(0)) * channels + columns
    tl.store(partials, tl.sum(total, 0), inside)


def plan_gelu_backward_(
    grad: Tensor, inner: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Plans :func:`gelu_backward_`."""
    check_contiguous(grad=grad, inner=inner, scale=scale, shift=shift)
    rows, channels = inner.shape
    samples = 1 if scale is None else len(scale)
    tile_rows, tile_columns = column_tile(channels)
    column_tiles = triton.cdiv(channels, tile_columns)
    count = count_partials(rows // samples, tile_rows, column_tiles * samples)
    partials = inner.new_empty(1, samples * count, channels, dtype=torch.float32)
    hidden = torch.empty_like(inner)
    total, adding = plan_total(partials)
    passing = Launch(
        _gelu_backward,
        (count, column_tiles, samples),
        dict(
            grad=grad,
            inner=inner,
            scale=scale,
            shift=shift,
            hidden=hidden,
            partials=partials,
            rows=rows // samples,
            octets=channels // 8,
        ),
        dict(TILE_ROWS=tile_rows, TILE_COLUMNS=tile_columns),
        TILE_WARPS,
    )
    return (hidden, total[0]), [passing, adding]


def gelu_backward_(
    grad: Tensor, inner: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`portable.gelu_backward_`, in two launches."""
    return run_plan(plan_gelu_backward_(grad, inner, scale, shift))
