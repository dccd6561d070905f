"""The gradient of the depthwise convolution with respect to its input.

It is a convolution of the gradient with respect to the output, with flipped taps.
"""

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
    find_inside,
    load_line,
    locate,
)
from .launch import Launch, run_plan
from .tiles import check_contiguous


@triton.jit(do_not_specialize=['height', 'width', 'octets'])
def _depthwise_input_grad(
    grad,
    taps,
    grad_output,
    grad_input,
    height,
    width,
    octets,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    count = octets * 8
    image, row, first = locate(tl.program_id(0), height, width, ROWS)
    rows = row + tl.arange(0, ROWS)[:, None]
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = channels < count
    exists = (rows < height) & inside
    place = ((image * height + rows) * width + first) * count + channels
    pixels_inside = find_inside(first, width, _PIXELS)
    sums = load_line(grad_output + place, exists, pixels_inside, count)
    sums = convolve(
        grad, taps, sums, image, rows, first, channels, inside, height, width, count, ROWS, True
    )
    for i in tl.static_range(_PIXELS):
        value = sums[i].to(grad_input.dtype.element_ty)
        tl.store(grad_input + place + i * count, value, exists & pixels_inside[i])


def plan_depthwise_input_grad(
    grad: Tensor, taps: Tensor, grad_output: Tensor
) -> tuple[Tensor, list[Launch]]:
    """Plans :func:`depthwise_input_grad`."""
    check_contiguous(grad=grad, taps=taps, grad_output=grad_output)
    batch, height, width, channels = grad.shape
    columns = min((128, 64, 32), key=lambda count: triton.cdiv(channels, count) * count)
    rows = 4 * WARP_CHANNELS // columns
    grad_input = torch.empty_like(grad_output)
    launch = Launch(
        _depthwise_input_grad,
        (count_tiles(batch, height, width, rows), triton.cdiv(channels, columns)),
        dict(
            grad=grad,
            taps=taps,
            grad_output=grad_output,
            grad_input=grad_input,
            height=height,
            width=width,
            octets=channels // 8,
        ),
        dict(ROWS=rows, COLUMNS=columns),
        num_warps=4,
    )
    return grad_input, [launch]


def depthwise_input_grad(grad: Tensor, taps: Tensor, grad_output: Tensor) -> Tensor:
    """As :func:`portable.depthwise_input_grad`, in one launch."""
    return run_plan(plan_depthwise_input_grad(grad, taps, grad_output))
