"""Dot products of the rows or of the columns of two matrices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, run_plan
from .partials import plan_total
from .tiles import TILE_WARPS, check_contiguous, column_tile, count_partials

# Columns that a program of row_products reads at a time.
ROW_COLUMNS = 1024


@triton.jit(do_not_specialize=['octets'])
def _row_products(first, second, products, octets, TILE_COLUMNS: tl.constexpr):
    channels = octets * 8
    row = tl.program_id(0)
    start_of_row = tl.cast(row, tl.int64) * channels
    first += start_of_row
    second += start_of_row
    total = tl.zeros([TILE_COLUMNS], tl.float32)
    for start in range(0, channels, TILE_COLUMNS):
        columns = start + tl.arange(0, TILE_COLUMNS)
        mask = columns < channels
        one = tl.load(first + columns, mask, 0.0).to(tl.float32)
        other = tl.load(second + columns, mask, 0.0).to(tl.float32)
        total += one * other
    tl.store(products + row, tl.sum(total, 0))


@triton.jit(do_not_specialize=['rows', 'octets'], do_not_specialize_on_alignment=['partials'])
def _column_products(
    first,
    second,
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
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * TILE_ROWS, rows, tl.num_programs(0) * TILE_ROWS):
        begin = (sample * tl.cast(rows, tl.int64) + start) * channels
        mask = (start + tile_rows < rows)[:, None] & inside[None, :]
        one = tl.load(first + begin + places, mask, 0.0).to(tl.float32)
        other = tl.load(second + begin + places, mask, 0.0).to(tl.float32)
        total += one * other
    partials += (sample * tl.num_programs(0) + tl.program_id(0)) * channels + columns
    tl.store(partials, tl.sum(total, 0), inside)


def plan_row_products(first: Tensor, second: Tensor) -> tuple[Tensor, list[Launch]]:
    """Plans :func:`row_products`."""
    check_contiguous(first=first, second=second)
    rows, channels = first.shape
    products = first.new_empty(rows, dtype=torch.float32)
    launch = Launch(
        _row_products,
        (rows,),
        dict(first=first, second=second, products=products, octets=channels // 8),
        dict(TILE_COLUMNS=ROW_COLUMNS),
        num_warps=4,
    )
    return products, [launch]


def row_products(first: Tensor, second: Tensor) -> Tensor:
    """As :func:`portable.row_products`, in one launch."""
    return run_plan(plan_row_products(first, second))


def plan_column_products(
    first: Tensor, second: Tensor, num_samples: int
) -> tuple[Tensor, list[Launch]]:
    """Plans :func:`column_products`."""
    check_contiguous(first=first, second=second)
    channels, rows = first.shape[1], len(first) // num_samples
    tile_rows, tile_columns = column_tile(channels)
    column_tiles = triton.cdiv(channels, tile_columns)
    count = count_partials(rows, tile_rows, column_tiles * num_samples)
    partials = first.new_empty(num_samples, count, channels, dtype=torch.float32)
    total, adding = plan_total(partials)
    passing = Launch(
        _column_products,
        (count, column_tiles, num_samples),
        dict(first=first, second=second, partials=partials, rows=rows, octets=channels // 8),
        dict(TILE_ROWS=tile_rows, TILE_COLUMNS=tile_columns),
        TILE_WARPS,
    )
    return total, [passing, adding]


def column_products(first: Tensor, second: Tensor, num_samples: int) -> Tensor:
    """As :func:`portable.column_products`, in two launches."""
    return run_plan(plan_column_products(first, second, num_samples))
