"""The norm over channels, with an output that can be channels-first, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, run_plan
from .tiles import check_contiguous

TILE_ELEMENTS = 4096
MAX_COLUMNS = 256


@triton.jit(
    do_not_specialize=['size', 'octets'],
    do_not_specialize_on_alignment=['weight', 'bias', 'output'],
)
def _norm(
    features,
    weight,
    bias,
    output,
    size,
    octets,
    eps,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
):
    count = octets * 8
    blocks = tl.cdiv(size, PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixels = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    exist = pixels < size
    features += (image * size + pixels) * count
    # After the first of the three passes, the tile is in the cache.
    total = tl.zeros([PIXELS, COLUMNS], tl.float32)
    for start in range(0, count, COLUMNS):
        channels = start + columns
        total += tl.load(features + channels, exist & (channels < count), 0.0).to(tl.float32)
    mean = (tl.sum(total, 1) / count)[:, None]
    total = tl.zeros([PIXELS, COLUMNS], tl.float32)
    for start in range(0, count, COLUMNS):
        channels = start + columns
        value = tl.load(features + channels, exist & (channels < count), 0.0).to(tl.float32) - mean
        total += tl.where(channels < count, value * value, 0.0)
    scale = tl.rsqrt(tl.sum(total, 1) / count + eps)[:, None]
    for start in range(0, count, COLUMNS):
        channels = start + columns
        inside = channels < count
        value = tl.load(features + channels, exist & inside, 0.0).to(tl.float32)
        gain = tl.load(weight + channels, inside, 0.0).to(tl.float32)
        shift = tl.load(bias + channels, inside, 0.0).to(tl.float32)
        value = ((value - mean) * scale * gain + shift).to(output.dtype.element_ty)
        if CHANNELS_FIRST:
            place = (image * count + channels) * size + pixels
        else:
            place = (image * size + pixels) * count + channels
        tl.store(output + place, value, exist & inside)


def plan_norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> tuple[Tensor, list[Launch]]:
    """Plans :func:`norm`."""
    check_contiguous(features=features, weight=weight, bias=bias)
    batch, height, width, channels = features.shape
    size, columns = height * width, min(MAX_COLUMNS, triton.next_power_of_2(channels))
    pixels = TILE_ELEMENTS // columns
    output = torch.empty_like(features)
    if channels_first:
        output = features.new_empty(batch, channels, height, width)
    launch = Launch(
        _norm,
        (batch * triton.cdiv(size, pixels),),
        dict(
            features=features,
            weight=weight,
            bias=bias,
            output=output,
            size=size,
            octets=channels // 8,
            eps=eps,
        ),
        dict(PIXELS=pixels, COLUMNS=columns, CHANNELS_FIRST=channels_first),
        num_warps=8,
    )
    return output, [launch]


def norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    """Normalises feature maps over their channels.

    Args:
        features: ``(N, H, W, C)``.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.
        channels_first: Whether the output is ``(N, C, H, W)``.
    """
    return run_plan(plan_norm(features, weight, bias, eps, channels_first))
