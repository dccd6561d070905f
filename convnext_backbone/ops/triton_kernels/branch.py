"""Where the branch of a block joins its input, and the gradient that enters the branch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, run_plan
from .partials import plan_total
from .tiles import TILE_WARPS, check_contiguous, column_tile, count_partials


@triton.jit(do_not_specialize=['rows', 'octets'], do_not_specialize_on_alignment=['scale', 'keep'])
def _add_branch(
    output,
    features,
    branch,
    scale,
    keep,
    rows,
    octets,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    channels = octets * 8
    columns = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = columns < channels
    start = tl.program_id(0) * TILE_ROWS
    tile_rows = tl.arange(0, TILE_ROWS)
    exists = start + tile_rows < rows
    mask = exists[:, None] & inside[None, :]
    first = tl.cast(start, tl.int64) * channels
    places = tile_rows[:, None] * channels + columns[None, :]
    added = tl.load(branch + first + places, mask, 0.0).to(tl.float32)
    if scale is not None:
        added *= tl.load(scale + columns, inside, 0.0)[None, :]
    if keep is not None:
        added *= tl.load(keep + start + tile_rows, exists, 0.0)[:, None]
    added += tl.load(features + first + places, mask, 0.0).to(tl.float32)
    tl.store(output + first + places, added.to(output.dtype.element_ty), mask)


@triton.jit(
    do_not_specialize=['rows', 'octets'],
    do_not_specialize_on_alignment=['scale', 'keep', 'partials'],
)
def _branch_grad(
    grad,
    scale,
    keep,
    kept,
    partials,
    rows,
    octets,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    channels = octets * 8
    columns = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = columns < channels
    tile_rows = tl.arange(0, TILE_ROWS)
    places = tile_rows[:, None] * channels + columns[None, :]
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * TILE_ROWS, rows, tl.num_programs(0) * TILE_ROWS):
        first = tl.cast(start, tl.int64) * channels
        exists = start + tile_rows < rows
        mask = exists[:, None] & inside[None, :]
        values = tl.load(grad + first + places, mask, 0.0).to(tl.float32)
        if scale is not None:
            values *= tl.load(scale + columns, inside, 0.0)[None, :]
        if keep is not None:
            values *= tl.load(keep + start + tile_rows, exists, 0.0)[:, None]
        total += values
        if kept is not None:
            tl.store(kept + first + places, values.to(kept.dtype.element_ty), mask)
    partials += tl.program_id(0) * channels + columns
    tl.store(partials, tl.sum(total, 0), inside)


def plan_add_branch_(
    output: Tensor, features: Tensor, branch: Tensor, scale: Tensor | None, keep: Tensor | None
) -> tuple[None, list[Launch]]:
    """Plans :func:`add_branch_`."""
    check_contiguous(output=output, features=features, branch=branch, scale=scale, keep=keep)
    rows, channels = features.shape
    tile_rows, tile_columns = column_tile(channels)
    launch = Launch(
        _add_branch,
        (triton.cdiv(rows, tile_rows), triton.cdiv(channels, tile_columns)),
        dict(
            output=output,
            features=features,
            branch=branch,
            scale=scale,
            keep=keep,
            rows=rows,
            octets=channels // 8,
        ),
        dict(TILE_ROWS=tile_rows, TILE_COLUMNS=tile_columns),
        TILE_WARPS,
    )
    return None, [launch]


def add_branch_(
    output: Tensor, features: Tensor, branch: Tensor, scale: Tensor | None, keep: Tensor | None
) -> None:
    """As :func:`portable.add_branch_`, in one launch."""
    run_plan(plan_add_branch_(output, features, branch, scale, keep))


def plan_branch_grad(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, scale: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Plans :func:`branch_grad`."""
    check_contiguous(grad=grad, keep=keep, scale=scale)
    rows, channels = grad.shape
    tile_rows, tile_columns = column_tile(channels)
    column_tiles = triton.cdiv(channels, tile_columns)
    count = count_partials(rows, tile_rows, column_tiles)
    partials = grad.new_empty(1, count, channels, dtype=torch.float32)
    total, adding = plan_total(partials)
    # Like the torch operators, return grad itself where nothing changes.
    is_same = keep is None and scale is None and dtype == grad.dtype
    kept = None if is_same else torch.empty_like(grad, dtype=dtype)
    passing = Launch(
        _branch_grad,
        (count, column_tiles),
        dict(
            grad=grad,
            scale=scale,
            keep=keep,
            kept=kept,
            partials=partials,
            rows=rows,
            octets=channels // 8,
        ),
        dict(TILE_ROWS=tile_rows, TILE_COLUMNS=tile_columns),
        TILE_WARPS,
    )
    return (grad if kept is None else kept, total[0]), [passing, adding]


def branch_grad(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`portable.branch_grad`, in two launches."""
    return run_plan(plan_branch_grad(grad, keep, dtype, scale))
