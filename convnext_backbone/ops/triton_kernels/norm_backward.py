"""The backward pass of the norm over channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, run_plan
from .partials import plan_total
from .tiles import check_contiguous, count_partials

# A program holds whole rows. These are the elements of its tile, but for wider rows.
TILE_ELEMENTS = 2048


@triton.jit(
    do_not_specialize=['rows', 'octets'], do_not_specialize_on_alignment=['weight', 'partials']
)
def _norm_backward(
    features,
    grad,
    weight,
    partials,
    rows,
    octets,
    eps,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    channels = octets * 8
    columns = tl.arange(0, TILE_COLUMNS)
    inside = columns < channels
    tile_rows = tl.arange(0, TILE_ROWS)
    places = tile_rows[:, None] * channels + columns[None, :]
    scale = tl.load(weight + columns, inside, 0.0)[None, :]
    sum_weight = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    sum_bias = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    sum_features = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * TILE_ROWS, rows, tl.num_programs(0) * TILE_ROWS):
        first = tl.cast(start, tl.int64) * channels
        exists = start + tile_rows < rows
        mask = exists[:, None] & inside[None, :]
        seen = tl.load(features + first + places, mask, 0.0).to(tl.float32)
        given = tl.load(grad + first + places, mask, 0.0).to(tl.float32)
        seen = tl.where(mask, seen - (tl.sum(seen, 1) / channels)[:, None], 0.0)
        variance = tl.sum(seen * seen, 1) / channels
        # Without eps, missing rows would be zero times infinity.
        deviation = tl.where(exists, tl.sqrt_rn(variance + eps), 1.0)[:, None]
        normed = seen / deviation
        sum_weight += given * normed
        sum_bias += given
        given *= scale
        along_bias = (tl.sum(given, 1) / channels)[:, None]
        along_scale = (tl.sum(given * normed, 1) / channels)[:, None]
        new = tl.where(mask, (given - along_bias - normed * along_scale) / deviation, 0.0)
        sum_features += new
        tl.store(features + first + places, new.to(features.dtype.element_ty), mask)
    partials += tl.program_id(0) * 3 * channels + columns
    tl.store(partials, tl.sum(sum_weight, 0), inside)
    tl.store(partials + channels, tl.sum(sum_bias, 0), inside)
    tl.store(partials + 2 * channels, tl.sum(sum_features, 0), inside)


def plan_norm_backward_(
    features: Tensor, grad: Tensor, norm_weight: Tensor, eps: float
) -> tuple[Tensor, list[Launch]]:
    """Plans :func:`norm_backward_`."""
    check_contiguous(features=features, grad=grad, norm_weight=norm_weight)
    channels = features.shape[-1]
    rows = features.numel() // channels
    columns = triton.next_power_of_2(channels)
    tile_rows = max(1, TILE_ELEMENTS // columns)
    count = count_partials(rows, tile_rows, 2)
    partials = features.new_empty(1, count, 3 * channels, dtype=torch.float32)
    total, adding = plan_total(partials)
    passing = Launch(
        _norm_backward,
        (count,),
        dict(
            features=features,
            grad=grad,
            weight=norm_weight,
            partials=partials,
            rows=rows,
            octets=channels // 8,
            eps=eps,
        ),
        dict(TILE_ROWS=tile_rows, TILE_COLUMNS=columns),
        num_warps=max(8, columns // 256),
    )
    return total.view(3, channels), [passing, adding]


def norm_backward_(features: Tensor, grad: Tensor, norm_weight: Tensor, eps: float) -> Tensor:
    """As :func:`portable.norm_backward_`, in two launches."""
    return run_plan(plan_norm_backward_(features, grad, norm_weight, eps))
