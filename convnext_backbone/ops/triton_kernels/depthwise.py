"""The depthwise convolution and the norm that follows it, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .convolution import (
    _PIXELS,
    WARP_CHANNELS,
    convolve,
    count_tiles,
    load_vector,
    locate,
)
from .launch import Launch, run_plan
from .tiles import check_contiguous


@triton.jit
def _tile_sums(values):
    """Sums a tile over its channels. All pixels together need one exchange between warps."""
    a = tl.join(tl.join(values[0], values[4]), tl.join(values[2], values[6]))
    b = tl.join(tl.join(values[1], values[5]), tl.join(values[3], values[7]))
    even, odd = tl.split(tl.sum(tl.join(a, b), 1))
    sums04, sums26 = tl.split(even)
    sums15, sums37 = tl.split(odd)
    sum0, sum4 = tl.split(sums04)
    sum1, sum5 = tl.split(sums15)
    sum2, sum6 = tl.split(sums26)
    sum3, sum7 = tl.split(sums37)
    return sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7


@triton.jit(
    do_not_specialize=['height', 'width', 'octets'],
    do_not_specialize_on_alignment=['bias', 'norm_weight', 'norm_bias'],
)
def _depthwise_norm(
    features,
    taps,
    bias,
    norm_weight,
    norm_bias,
    normed,
    convolved,
    height,
    width,
    octets,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    count = octets * 8
    image, row, first = locate(tl.program_id(0), height, width, ROWS)
    rows = row + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        channels = chunk * COLUMNS + columns
        inside = channels < count
        part = (load_vector(bias, channels, inside, ROWS),) * _PIXELS
        sums += convolve(
            features,
            taps,
            part,
            image,
            rows,
            first,
            channels,
            inside,
            height,
            width,
            count,
            ROWS,
            False,
        )
    totals = ()
    for i in tl.static_range(_PIXELS):
        total = sums[i]
        for chunk in tl.static_range(1, CHUNKS):
            total += sums[chunk * _PIXELS + i]
        totals += (total,)
    means = _tile_sums(totals)
    squares = ()
    for i in tl.static_range(_PIXELS):
        square = tl.zeros([ROWS, COLUMNS], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            centred = sums[chunk * _PIXELS + i] - (means[i] / count)[:, None]
            square += tl.where(chunk * COLUMNS + columns < count, centred * centred, 0.0)
        squares += (square,)
    variances = _tile_sums(squares)
    place = ((image * height + rows) * width + first) * count
    for chunk in tl.static_range(CHUNKS):
        channels = chunk * COLUMNS + columns
        inside = channels < count
        weight = load_vector(norm_weight, channels, inside, ROWS)
        shift = load_vector(norm_bias, channels, inside, ROWS)
        for i in tl.static_range(_PIXELS):
            exists = (rows < height) & inside & (first + i < width)
            value = sums[chunk * _PIXELS + i]
            target = place + i * count + channels
            if convolved is not None:
                tl.store(convolved + target, value.to(convolved.dtype.element_ty), exists)
            scale = tl.rsqrt(variances[i] / count + eps)[:, None]
            value = (value - (means[i] / count)[:, None]) * scale * weight + shift
            tl.store(normed + target, value.to(normed.dtype.element_ty), exists)


def plan_depthwise_norm(
    features: Tensor,
    taps: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Plans :func:`depthwise_norm`."""
    check_contiguous(features=features, taps=taps, bias=bias)
    check_contiguous(norm_weight=norm_weight, norm_bias=norm_bias)
    batch, height, width, channels = features.shape
    # A program has all channels of its pixels, in up to three chunks, one after the other: a power
    # of two, but little more than the channels.
    columns = max(32, triton.next_power_of_2(triton.cdiv(channels, 3)))
    rows = max(1, 4 * WARP_CHANNELS // columns)
    normed = torch.empty_like(features, dtype=dtype)
    # Gradients are written over it, and they are not scaled.
    kept = torch.float32 if dtype == torch.float16 else dtype
    convolved = features.new_empty(features.shape if keep else 0, dtype=kept)
    chunks = triton.cdiv(channels, columns)
    # Pixels in float32 take more registers, and the compiler spills some of them so that one more
    # program fits on a multiprocessor. These bounds have room for all of them, and for three
    # programs of two chunks or two of three chunks at a time.
    max_registers = None
    if features.dtype == torch.float32:
        max_registers = 160 if chunks == 2 else 255
    launch = Launch(
        _depthwise_norm,
        (count_tiles(batch, height, width, rows),),
        dict(
            features=features,
            taps=taps,
            bias=bias,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            normed=normed,
            convolved=convolved if keep else None,
            height=height,
            width=width,
            octets=channels // 8,
            eps=eps,
        ),
        dict(ROWS=rows, COLUMNS=columns, CHUNKS=chunks),
        num_warps=rows * columns // WARP_CHANNELS,
        max_registers=max_registers,
    )
    return (normed, convolved), [launch]


def depthwise_norm(
    features: Tensor,
    taps: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`portable.depthwise_norm`, in one launch."""
    return run_plan(
        plan_depthwise_norm(features, taps, bias, norm_weight, norm_bias, eps, dtype, keep)
    )
