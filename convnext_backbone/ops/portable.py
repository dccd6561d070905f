"""All operations of a fused block except its matrix products, in torch operators.

The compiled kernels in ``csrc`` implement the same operators with the same names; this module is
their reference. Feature maps have the shape ``(N, H, W, C)``, rows have the shape ``(rows, C)``.
Parameters and sums are in the wide dtype: float32, or float64 for feature maps in float64.
``dtype`` is the dtype of the matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sums import computed_in, wide


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
    """Returns the normalised depthwise convolution and, with ``keep``, the input of the norm.

    ``taps``, ``(49, C)``, are the weight of the convolution.
    """
    arithmetic = computed_in(dtype, features.device)
    convolved = F.conv2d(
        features.permute(0, 3, 1, 2).to(arithmetic),
        _weight(taps).to(arithmetic),
        bias.to(arithmetic),
        padding=3,
        groups=features.shape[-1],
    )
    convolved = convolved.permute(0, 2, 3, 1).contiguous()
    if dtype == torch.float16:  # norm_backward_ writes gradients over it, which are not scaled
        convolved = convolved.float()
    normed = F.layer_norm(
        convolved.to(taps.dtype), convolved.shape[-1:], norm_weight, norm_bias, eps
    )
    return normed.to(dtype), convolved if keep else convolved.new_empty(0)


def norm_backward_(features: Tensor, grad: Tensor, norm_weight: Tensor, eps: float) -> Tensor:
    """Replaces ``features``, the input of the norm, by the gradient with respect to it.

    Returns three sums over the rows, ``(3, C)``: the gradients with respect to the norm's weight
    and bias, and the sum of the new ``features``.
    """
    seen, shape = features.to(norm_weight.dtype), features.shape[-1:]
    _, mean, scale = torch.native_layer_norm(seen, shape, None, None, eps)
    grad_seen, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad.to(seen.dtype), seen, shape, mean, scale, norm_weight, norm_weight, [True] * 3
    )
    features.copy_(grad_seen)
    return torch.stack([grad_weight, grad_bias, grad_seen.sum(0)])


def depthwise_input_grad(grad: Tensor, taps: Tensor, grad_output: Tensor) -> Tensor:
    """Returns ``grad_output`` plus the gradient with respect to the convolution's input.

    ``grad`` is the gradient with respect to the convolution's output.
    """
    weight = _weight(taps).to(grad.dtype)
    images = grad.permute(0, 3, 1, 2)
    passed = _convolution_backward(images, images, weight, [True, False, False])[0]
    return (grad_output + passed.permute(0, 2, 3, 1)).to(grad_output.dtype)


def depthwise_weight_grad(features: Tensor, grad: Tensor) -> Tensor:
    """Returns the gradient with respect to the taps, ``(49, C)``."""
    channels = features.shape[-1]
    images, grads = features.permute(0, 3, 1, 2).to(grad.dtype), grad.permute(0, 3, 1, 2)
    weight = grad.new_empty(channels, 1, 7, 7)
    grad_weight = _convolution_backward(grads, images, weight, [False, True, False])[1]
    return grad_weight.view(channels, 49).t()


def gelu_backward_(
    grad: Tensor, inner: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Replaces ``grad`` by the gradient with respect to ``inner``, the input of the GELU.

    The gradient with respect to ``gelu(inner)`` is ``grad``, or with GRN
    ``grad * scale + gelu(inner) * shift``. ``scale`` and ``shift`` are ``(S, C)`` for S samples of
    consecutive rows. Returns ``gelu(inner)`` and the sum of the new ``grad`` over the rows.
    """
    hidden = F.gelu(inner)
    outer = grad
    if scale is not None and shift is not None:
        scaled = _samples(grad, len(scale)) * scale[:, None]
        outer = (scaled + _samples(hidden, len(scale)) * shift[:, None]).view_as(grad)
    torch.ops.aten.gelu_backward.grad_input(outer.to(inner.dtype), inner, grad_input=grad)
    return hidden, grad.sum(0, dtype=wide(grad.dtype))


def add_branch_(
    output: Tensor, features: Tensor, branch: Tensor, scale: Tensor | None, keep: Tensor | None
) -> None:
    """Sets ``output = features + branch * scale * keep``; scale per channel, keep per row."""
    scaled = branch if scale is None else branch * scale
    output.copy_(features + _kept(scaled, keep))


def branch_grad(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns ``grad * scale * keep`` in ``dtype``, and its sum over the rows.

    ``scale`` is per channel, ``keep`` per row.
    """
    kept = _kept(grad if scale is None else grad * scale, keep)
    return kept.to(dtype), kept.sum(0, dtype=wide(dtype))


def row_products(first: Tensor, second: Tensor) -> Tensor:
    """Returns the dot product of each row with the same row of the other matrix, ``(rows,)``."""
    return (first * second).sum(1, dtype=wide(first.dtype))


def column_products(first: Tensor, second: Tensor, num_samples: int) -> Tensor:
    """Returns for each sample the dot products of the columns of both matrices, ``(S, C)``."""
    products = first * second.to(wide(second.dtype))
    return _samples(products, num_samples).sum(1)


def _samples(rows: Tensor, num_samples: int) -> Tensor:
    return rows.view(num_samples, -1, rows.shape[1])


def _weight(taps: Tensor) -> Tensor:
    return taps.t().reshape(-1, 1, 7, 7)


def _kept(rows: Tensor, keep: Tensor | None) -> Tensor:
    return rows if keep is None else rows * keep[:, None]


def _convolution_backward(
    grads: Tensor, images: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        grads, images, weight, None, [1, 1], [3, 3], [1, 1], False, [0, 0], len(weight), mask
    )
