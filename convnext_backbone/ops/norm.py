"""The norm of a map's channels as one function, by compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class FusedNorm(torch.autograd.Function):
    """Normalises the channels of a map and, in the same pass, puts them first in memory.

    Args of ``apply``: the map ``(N, H, W, C)``, contiguous; weight and bias ``(C,)`` in float32;
    eps; whether the output lies in memory as ``(N, C, H, W)``. Returns ``(N, C, H, W)``, which can
    be differentiated once.
    """

    @staticmethod
    def forward(ctx, map, weight, bias, eps, contiguous):
        ctx.eps = eps
        ctx.save_for_backward(map, weight)
        output = torch.ops.convnext_backbone.norm(map, weight, bias, eps, contiguous)
        return output if contiguous else output.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        map, weight = ctx.saved_tensors
        grad = map.to(torch.float32, copy=True)
        grad_weight, grad_bias, _ = torch.ops.convnext_backbone.norm_backward_(
            grad, grad_output.permute(0, 2, 3, 1).contiguous(), weight, ctx.eps
        )
        return grad.to(map.dtype), grad_weight, grad_bias, None, None
