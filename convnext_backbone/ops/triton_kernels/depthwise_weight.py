"""The gradient of the depthwise convolution with respect to its taps.

Every program has the 49 sums of its channels in registers, over many tiles, and writes them once. A
second launch adds these partial sums. Without atomic operations, the result is the same in every
run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .convolution import count_tiles, find_inside, load_line
from .launch import Launch, run_plan
from .partials import plan_total
from .tiles import check_contiguous

# Each of the four warps of a program has tiles of its own, in 32 channels. A thread has one channel
# and needs 49 sums for it. A pixel that it loads serves up to 16 products.
LINES = 4
PIXELS = 4
WARPS = 4
COLUMNS = 32

# A card runs about half as many programs at a time. A program that has few tiles takes longer to
# write its sums than to compute them.
MAX_PROGRAMS = 768
MIN_TILES = 4

_LINES, _PIXELS = tl.constexpr(LINES), tl.constexpr(PIXELS)
_WARPS, _COLUMNS = tl.constexpr(WARPS), tl.constexpr(COLUMNS)


@triton.jit
def _store_line(partials, sums, columns, width):
    """Sums seven blocks over their rows and stores them. Together, they need one exchange."""
    zero = tl.zeros_like(sums[0])
    even = tl.join(tl.join(sums[0], sums[4]), tl.join(sums[2], sums[6]))
    odd = tl.join(tl.join(sums[1], sums[5]), tl.join(sums[3], zero))
    bit = tl.arange(0, 2)
    kx = bit[:, None, None] * 4 + bit[None, :, None] * 2 + bit[None, None, :]
    kx = kx[None, :, :, :]
    columns = columns[:, None, None, None]
    inside = (kx < 7) & (columns < width)
    tl.store(partials + kx * width + columns, tl.sum(tl.join(even, odd), 0), inside)


@triton.jit(do_not_specialize=['tiles', 'height', 'width', 'octets'])
def _depthwise_weight_grad(features, grad, partials, tiles, height, width, octets):
    count = octets * 8
    line_size = width.to(tl.int64) * count
    columns = tl.program_id(1) * _COLUMNS + tl.arange(0, _COLUMNS)
    channels = columns[None, :]
    warps = tl.arange(0, _WARPS)[:, None]
    blocks = tl.cdiv(height, _LINES)
    strips = tl.cdiv(width, _PIXELS)
    sums = (tl.zeros([_WARPS, _COLUMNS], tl.float32),) * 49
    for start in range(tl.program_id(0) * _WARPS, tiles, tl.num_programs(0) * _WARPS):
        # Tiles below each other are neighbours: they share most of the pixels around them.
        tile = start + warps
        strip = tile // blocks
        image = (strip // strips).to(tl.int64)
        first = strip % strips * _PIXELS
        row = tile % blocks * _LINES
        exist = (tile < tiles) & (channels < count)
        place = ((image * height + row) * width + first) * count + channels
        grads = ()
        pixels_inside = find_inside(first, width, _PIXELS)
        for i in tl.static_range(_LINES):
            lines = (row + i < height) & exist
            grads += load_line(grad + place + i * line_size, lines, pixels_inside, count)
        pixels_inside = find_inside(first - 3, width, _PIXELS + 6)
        place -= 3 * count
        for j in tl.static_range(_LINES + 6):
            source = row + (j - 3)
            lines = (source >= 0) & (source < height) & exist
            line = features + place + (j - 3) * line_size
            pixels = load_line(line, lines, pixels_inside, count)
            new = ()
            for ky in tl.static_range(7):
                for kx in tl.static_range(7):
                    value = sums[ky * 7 + kx]
                    if j - ky >= 0 and j - ky < _LINES:
                        for i in tl.static_range(_PIXELS):
                            value += pixels[i + kx] * grads[(j - ky) * _PIXELS + i]
                    new += (value,)
            sums = new
    partials += tl.program_id(0) * 49 * count
    for ky in tl.static_range(7):
        _store_line(partials + ky * 7 * count, sums[ky * 7 : ky * 7 + 7], columns, count)


def plan_depthwise_weight_grad(features: Tensor, grad: Tensor) -> tuple[Tensor, list[Launch]]:
    """Plans :func:`depthwise_weight_grad`."""
    check_contiguous(features=features, grad=grad)
    batch, height, width, channels = features.shape
    blocks = triton.cdiv(channels, COLUMNS)
    tiles = count_tiles(batch, height, width, LINES, PIXELS)
    count = max(1, min(tiles // (WARPS * MIN_TILES), MAX_PROGRAMS // blocks))
    partials = features.new_empty(1, count, 49 * channels, dtype=torch.float32)
    total, adding = plan_total(partials)
    summing = Launch(
        _depthwise_weight_grad,
        (count, blocks),
        dict(
            features=features,
            grad=grad,
            partials=partials,
            tiles=tiles,
            height=height,
            width=width,
            octets=channels // 8,
        ),
        {},
        num_warps=WARPS,
    )
    return total.view(49, channels), [summing, adding]


def depthwise_weight_grad(features: Tensor, grad: Tensor) -> Tensor:
    """As :func:`portable.depthwise_weight_grad`, in two launches."""
    return run_plan(plan_depthwise_weight_grad(features, grad))
