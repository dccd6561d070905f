"""The norm of a map's channels as one function, by compiled kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class FusedNorm(torch.autograd.Function):
    """Normalises the channels of a map and, if wanted, puts them first in memory.

    Args of ``apply``: the map ``(N, H, W, C)``, contiguous; weight and bias ``(C,)`` in float32;
    eps; whether the output is ``(N, C, H, W)``, contiguous, instead of ``(N, H, W, C)``.
    """

    @staticmethod
    def forward(ctx, map, weight, bias, eps, channels_first):
        ctx.eps, ctx.channels_first = eps, channels_first
        ctx.save_for_backward(map, weight, bias)
        return torch.ops.convnext_backbone.norm(map, weight, bias, eps, channels_first)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        map, weight, bias = ctx.saved_tensors
        if ctx.channels_first:
            grad_output = grad_output.permute(0, 2, 3, 1)
        if torch.is_grad_enabled():  # gradients of gradients are left to torch
            output = F.layer_norm(map.float(), weight.shape, weight, bias, ctx.eps).to(map.dtype)
            inputs = (map, weight, bias)
            return *torch.autograd.grad(output, inputs, grad_output, create_graph=True), None, None
        grad = map.to(torch.float32, copy=True)
        grad_weight, grad_bias, _ = torch.ops.convnext_backbone.norm_backward_(
            grad, grad_output.contiguous(), weight, ctx.eps
        )
        return grad.to(map.dtype), grad_weight, grad_bias, None, None
