"""What a fused block does beside its matrix products, in torch.

The compiled kernels of ``csrc`` offer the same operators under the same names; this is what they
compute. Maps have the shape ``(N, H, W, C)``, rows ``(rows, C)``. Parameters and sums are in the
wide type, float32, or float64 for maps of float64; ``dtype`` is that of the matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import wide


def depthwise_norm(
    map: Tensor,
    taps: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The normalised depthwise convolution of ``map`` and, with ``keep``, what the norm saw.

    ``taps`` of shape ``(49, C)`` are the convolution's weight.
    """
    convolved = F.conv2d(
        map.permute(0, 3, 1, 2).to(dtype),
        _weight(taps).to(dtype),
        bias.to(dtype),
        padding=3,
        groups=map.shape[-1],
    )
    convolved = convolved.permute(0, 2, 3, 1).contiguous()
    normed = F.layer_norm(
        convolved.to(taps.dtype), convolved.shape[-1:], norm_weight, norm_bias, eps
    )
    return normed.to(dtype), convolved if keep else convolved.new_empty(0)


def norm_backward_(map: Tensor, grad: Tensor, norm_weight: Tensor, eps: float) -> Tensor:
    """Turns ``map``, what the norm saw, into the gradient by it.

    Returns the sums ``(3, C)`` of the gradients of the norm's weight, of its bias and by ``map``.
    """
    seen, shape = map.to(norm_weight.dtype), map.shape[-1:]
    _, mean, scale = torch.native_layer_norm(seen, shape, None, None, eps)
    grad_map, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad.to(seen.dtype), seen, shape, mean, scale, norm_weight, norm_weight, [True] * 3
    )
    map.copy_(grad_map)
    return torch.stack([grad_weight, grad_bias, grad_map.sum(0)])


def depthwise_input_grad(grad: Tensor, taps: Tensor, grad_output: Tensor) -> Tensor:
    """``grad_output`` plus the gradient that ``grad``, by the convolution's output, passes on."""
    weight = _weight(taps).to(grad.dtype)
    images = grad.permute(0, 3, 1, 2)
    passed = _convolution_backward(images, images, weight, [True, False, False])[0]
    return grad_output + passed.permute(0, 2, 3, 1).to(grad_output.dtype)


def depthwise_weight_grad(map: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the taps, ``(49, C)``."""
    channels = map.shape[-1]
    images, grads = map.permute(0, 3, 1, 2).to(grad.dtype), grad.permute(0, 3, 1, 2)
    weight = grad.new_empty(channels, 1, 7, 7)
    grad_weight = _convolution_backward(grads, images, weight, [False, True, False])[1]
    return grad_weight.view(channels, 49).t()


def gelu_backward_(
    grad: Tensor, input: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns the gradient by ``gelu(input)`` into the gradient by ``input``, in its memory or new.

    With ``scale`` and ``shift``, ``(S, C)`` for S samples whose rows follow each other, the former
    is ``grad * scale + gelu(input) * shift``. Returns ``gelu(input)``, the result and its sum over
    rows.
    """
    output = F.gelu(input)
    outer = grad
    if scale is not None:
        scaled = _samples(grad, len(scale)) * scale[:, None]
        outer = (scaled + _samples(output, len(scale)) * shift[:, None]).view_as(grad)
    result = torch.ops.aten.gelu_backward(outer.to(input.dtype), input)
    return output, result, result.sum(0, dtype=wide(result.dtype))


def add_branch_(
    output: Tensor, map: Tensor, branch: Tensor, scale: Tensor | None, keep: Tensor | None
) -> None:
    """``output = map + branch * scale * keep``, a scale for each channel, a keep for each row."""
    output.copy_(map + _scaled(branch, scale, keep))


def branch_grad(
    grad: Tensor, scale: Tensor | None, keep: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradient by the branch of :func:`add_branch_`, in ``dtype``, and its sum over rows."""
    scaled = _scaled(grad, scale, keep)
    return scaled.to(dtype), scaled.sum(0, dtype=wide(dtype))


def row_products(first: Tensor, second: Tensor) -> Tensor:
    """The product of each row with the same row of the other matrix, ``(rows,)``."""
    return (first * second).sum(1, dtype=wide(first.dtype))


def column_products(first: Tensor, second: Tensor, num_samples: int) -> Tensor:
    """The product of each sample's columns with the same columns of the other, ``(S, C)``."""
    products = first * second.to(wide(second.dtype))
    return _samples(products, num_samples).sum(1)


def _samples(rows: Tensor, num_samples: int) -> Tensor:
    return rows.view(num_samples, -1, rows.shape[1])


def _weight(taps: Tensor) -> Tensor:
    return taps.t().reshape(-1, 1, 7, 7)


def _scaled(rows: Tensor, scale: Tensor | None, keep: Tensor | None) -> Tensor:
    if scale is not None:
        rows = rows * scale
    return rows if keep is None else rows * keep[:, None]


def _convolution_backward(
    grads: Tensor, images: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        grads, images, weight, None, [1, 1], [3, 3], [1, 1], False, [0, 0], len(weight), mask
    )
