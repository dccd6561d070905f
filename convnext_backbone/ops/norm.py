"""The norm over the channels of a feature map as one function, computed by our own kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .choice import have_norm_kernels, pick_kernels
from .plain import backward_is_plain, plain_gradients, plain_norm


def fused_norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    """Normalises feature maps over their channels; the output can be channels-first.

    Args:
        features: Feature maps ``(N, H, W, C)`` that compiled or Triton kernels support.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.
        channels_first: Whether the output is a contiguous ``(N, C, H, W)`` instead of a contiguous
            ``(N, H, W, C)``.
    """
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    return _FusedNorm.apply(features.contiguous(), weight, bias, eps, channels_first)


def map_norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    """Computes what :func:`fused_norm` computes, without gradients, with or without kernels."""
    if have_norm_kernels(features, weight.dtype):
        kernels = pick_kernels(features, features.dtype)
        return kernels.norm(features, weight, bias, eps, channels_first)
    normed = plain_norm(features, weight, bias, eps)
    return normed.permute(0, 3, 1, 2).contiguous() if channels_first else normed


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, eps, channels_first):
        ctx.eps, ctx.channels_first = eps, channels_first
        ctx.save_for_backward(features, weight, bias)
        kernels = pick_kernels(features, features.dtype)
        return kernels.norm(features, weight, bias, eps, channels_first)

    @staticmethod
    def backward(ctx, grad_output):
        features, weight, _ = ctx.saved_tensors
        if ctx.channels_first:
            grad_output = grad_output.permute(0, 2, 3, 1)
        if backward_is_plain(grad_output):

            def run(features, weight, bias):
                return plain_norm(features, weight, bias, ctx.eps)

            needs = ctx.needs_input_grad[:3]
            return *plain_gradients(run, ctx.saved_tensors, needs, grad_output), None, None
        return *norm_gradients(features, weight, ctx.eps, grad_output), None, None


def norm_gradients(
    features: Tensor, weight: Tensor, eps: float, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients with respect to ``features``, the weight and the bias.

    Args:
        features: As in :func:`fused_norm`, but ``weight`` is contiguous and in float32.
        weight: As above.
        eps: As above.
        grad_output: The gradient with respect to the output, ``(N, H, W, C)`` with any strides.
    """
    grad = features.to(torch.float32, copy=True)
    kernels = pick_kernels(features, features.dtype)
    grad_weight, grad_bias, _ = kernels.norm_backward_(
        grad, grad_output.resolve_neg().contiguous(), weight, eps
    )
    return grad.to(features.dtype), grad_weight, grad_bias
