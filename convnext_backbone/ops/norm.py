"""The norm over the channels of a feature map as one function, computed by compiled kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    """Normalises feature maps over their channels; the output can be channels-first.

    Args:
        features: Feature maps ``(N, H, W, C)`` that the compiled kernels support.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.
        channels_first: Whether the output is a contiguous ``(N, C, H, W)`` instead of a contiguous
            ``(N, H, W, C)``.
    """
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    return _FusedNorm.apply(features.contiguous(), weight, bias, eps, channels_first)


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, eps, channels_first):
        ctx.eps, ctx.channels_first = eps, channels_first
        ctx.save_for_backward(features, weight, bias)
        return torch.ops.convnext_backbone.norm(features, weight, bias, eps, channels_first)

    @staticmethod
    def backward(ctx, grad_output):
        features, weight, bias = ctx.saved_tensors
        if ctx.channels_first:
            grad_output = grad_output.permute(0, 2, 3, 1)
        if torch.is_grad_enabled():  # create_graph=True: use operators with second gradients
            output = F.layer_norm(features.float(), weight.shape, weight, bias, ctx.eps)
            output = output.to(features.dtype)
            needs = ctx.needs_input_grad[:3]
            inputs = [t for t, is_needed in zip(ctx.saved_tensors, needs, strict=True) if is_needed]
            grads = iter(torch.autograd.grad(output, inputs, grad_output, create_graph=True))
            return *(next(grads) if is_needed else None for is_needed in needs), None, None
        grad = features.to(torch.float32, copy=True)
        grad_weight, grad_bias, _ = torch.ops.convnext_backbone.norm_backward_(
            grad, grad_output.contiguous(), weight, ctx.eps
        )
        return grad.to(features.dtype), grad_weight, grad_bias, None, None
