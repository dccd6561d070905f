"""The block in differentiable operators, and backward passes through them.

The fused functions compute their gradients by hand. Gradients of gradients and function transforms
of a backward pass, such as vectorised Jacobians, need operators that autograd knows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import BlockParameters, BlockSettings
from .sums import wide
from .tracing import constant_while_traced


@constant_while_traced  # torch.compile compiles again for other transforms
def is_transformed() -> bool:
    """Whether a function transform of ``torch.func`` or forward-mode differentiation is active."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def backward_is_plain(grad_output: Tensor) -> bool:
    """Whether a backward pass must consist of differentiable operators."""
    return (
        torch.is_grad_enabled()  # with create_graph=True
        or is_transformed()
        or torch._C._functorch.is_legacy_batchedtensor(grad_output)  # with is_grads_batched=True
    )


def plain_gradients(
    run: Callable[..., Tensor],
    inputs: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    grad_output: Tensor,
) -> list[Tensor | None]:
    """Runs a function again and returns the gradients with respect to its inputs.

    Args:
        run: The function. Its operators must be differentiable.
        inputs: Its arguments.
        needs: Whether each input needs a gradient.
        grad_output: The gradient with respect to the output.
    """
    create_graph = torch.is_grad_enabled()
    pairs = zip(inputs, needs, strict=True)
    wanted = [t for t, is_needed in pairs if is_needed and t is not None]
    with torch.enable_grad():
        output = run(*inputs)
    grads = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=create_graph))
    return [next(grads) if is_needed else None for is_needed in needs]


def plain_block(
    features: Tensor, keep: Tensor | None, settings: BlockSettings, p: BlockParameters
) -> Tensor:
    """Computes what :func:`fused_block` computes."""
    dtype, channels = settings.dtype, features.shape[-1]
    p = p._replace(
        **{name: getattr(p, name).to(dtype) for name in ('weight1', 'bias1', 'weight2', 'bias2')}
    )
    branch = F.conv2d(
        features.permute(0, 3, 1, 2).to(dtype),
        p.depthwise_weight.to(dtype),
        p.depthwise_bias.to(dtype),
        padding=3,
        groups=channels,
    ).permute(0, 2, 3, 1)
    branch = plain_norm(branch, p.norm_weight, p.norm_bias, settings.norm_eps)
    hidden = F.gelu(F.linear(branch, p.weight1, p.bias1))
    if p.grn_weight is not None and p.grn_bias is not None:
        norm = torch.linalg.vector_norm(hidden, dim=(1, 2), keepdim=True, dtype=wide(dtype))
        ratio = norm / (norm.mean(-1, keepdim=True) + settings.grn_eps)
        hidden = (hidden * (1 + p.grn_weight * ratio) + p.grn_bias).to(dtype)
    branch = F.linear(hidden, p.weight2, p.bias2)
    if p.layer_scale is not None:
        branch = branch * p.layer_scale
    if keep is not None:
        branch = branch * keep.view(-1, 1, 1, 1)
    return (features + branch).to(settings.output_dtype)


def plain_norm(features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalises over the last axis; the statistics are in the wide dtype."""
    dtype = wide(features.dtype)
    normed = F.layer_norm(features.to(dtype), weight.shape, weight.to(dtype), bias.to(dtype), eps)
    return normed.to(features.dtype)
