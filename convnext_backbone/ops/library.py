"""The fused functions as operators of torch, for ``torch.compile``.

A compiler does not look into these operators. So it keeps the kernels of the eager mode, and their
parts may depend on the sizes of the images without a new compilation. Each operator has a backward
operator, and each of both has a fake: shapes and dtypes of the results, which are contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .block import Block
from .choice import pick_kernels
from .norm import norm_gradients
from .parameters import OPTIONAL, BlockParameters, BlockSettings

NAMESPACE = 'convnext_backbone'

_PARAMETERS = ', '.join(
    f'Tensor{"?" if name in OPTIONAL else ""} {name}' for name in BlockParameters._fields
)
_SETTINGS = 'ScalarType dtype, ScalarType output_dtype, float norm_eps, float grn_eps, bool lean'
_COUNT = len(BlockParameters._fields)


def compiled_block(
    features: Tensor, keep: Tensor | None, settings: BlockSettings, parameters: BlockParameters
) -> Tensor:
    """Computes what :func:`fused_block` computes, as one operator.

    Gradients of gradients are not supported, as in all of ``torch.compile``.
    """
    tensors = (features, *(t for t in parameters if t is not None))
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors) and not settings.lean
    return torch.ops.convnext_backbone.block(features, keep, *parameters, *settings, save)[0]


def compiled_norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    """Computes what :func:`fused_norm` computes, as one operator."""
    return torch.ops.convnext_backbone.map_norm(features, weight, bias, eps, channels_first)


@torch.library.custom_op(
    f'{NAMESPACE}::block',
    mutates_args=(),
    schema=f'(Tensor features, Tensor? keep, {_PARAMETERS}, {_SETTINGS}, bool save)'
    ' -> (Tensor, Tensor)',
)
def _block(features, keep, *rest):
    """Returns the block's output and, with ``save``, the pre-activations."""
    parameters, settings, (save,) = _split(rest)
    with torch.autocast(features.device.type, enabled=False):
        output, inner = Block(features.contiguous(), keep, settings, parameters).output(save)
    return output, features.new_empty(0, dtype=settings.dtype) if inner is None else inner


@_block.register_fake
def _(features, keep, *rest):
    _, settings, (save,) = _split(rest)
    batch, height, width, channels = features.shape
    shape = (batch * height * width, 4 * channels) if save else (0,)
    output = features.new_empty(features.shape, dtype=settings.output_dtype)
    return output, features.new_empty(shape, dtype=settings.dtype)


@torch.library.custom_op(
    f'{NAMESPACE}::block_backward',
    mutates_args=(),
    schema='(Tensor grad_output, Tensor inner, Tensor features, Tensor? keep, '
    f'{_PARAMETERS}, {_SETTINGS}, bool[] needs) -> Tensor[]',
)
def _block_backward(grad_output, inner, features, keep, *rest):
    """Returns the gradients that are needed, of the feature maps and of the parameters."""
    parameters, settings, ((needs_features, *needs),) = _split(rest)
    names = {name for name, needed in zip(parameters._fields, needs, strict=True) if needed}
    with torch.autocast(features.device.type, enabled=False):
        grad_features, grads = Block(features.contiguous(), keep, settings, parameters).gradients(
            grad_output.resolve_neg().contiguous(),
            inner if inner.numel() else None,
            needs_features,
            names,
        )
    if grad_features is not None:
        grads['features'] = grad_features
    return [_own(grads[name], tensor) for name, tensor in _needed(features, rest)]


@_block_backward.register_fake
def _(grad_output, inner, features, keep, *rest):
    return [tensor.new_empty(tensor.shape) for _, tensor in _needed(features, rest)]


def _save(ctx, inputs, output):
    features, keep, *rest = inputs
    ctx.settings = rest[_COUNT:-1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], features, keep, *rest[:_COUNT])


def _backward(ctx, grad_output, _):
    needs_features, _, *needs = ctx.needs_input_grad
    needs = [needs_features, *needs[:_COUNT]]
    grads = iter(
        torch.ops.convnext_backbone.block_backward(
            grad_output, *ctx.saved_tensors, *ctx.settings, needs
        )
    )
    grad_features, *others = (next(grads) if needed else None for needed in needs)
    return grad_features, None, *others, *[None] * (len(ctx.settings) + 1)


_block.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op(f'{NAMESPACE}::map_norm', mutates_args=())
def _norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    features = features.contiguous()
    kernels = pick_kernels(features, features.dtype)
    return kernels.norm(features, weight, bias, eps, channels_first)


@_norm.register_fake
def _(features, weight, bias, eps, channels_first):
    batch, height, width, channels = features.shape
    if channels_first:
        return features.new_empty(batch, channels, height, width)
    return features.new_empty(features.shape)


@torch.library.custom_op(f'{NAMESPACE}::map_norm_backward', mutates_args=())
def _norm_backward(
    grad_output: Tensor, features: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad, grad_weight, grad_bias = norm_gradients(
        features.contiguous(), weight.float().contiguous(), eps, grad_output
    )
    return grad, _own(grad_weight, weight), _own(grad_bias, weight)


@_norm_backward.register_fake
def _(grad_output, features, weight, eps):
    return features.new_empty(features.shape), *(weight.new_empty(weight.shape) for _ in 'wb')


def _save_norm(ctx, inputs, output):
    features, weight, _, ctx.eps, ctx.channels_first = inputs
    ctx.save_for_backward(features, weight)


def _backward_norm(ctx, grad_output):
    if ctx.channels_first:
        grad_output = grad_output.permute(0, 2, 3, 1)
    grads = torch.ops.convnext_backbone.map_norm_backward(grad_output, *ctx.saved_tensors, ctx.eps)
    return *grads, None, None


_norm.register_autograd(_backward_norm, setup_context=_save_norm)


def _split(arguments: tuple) -> tuple[BlockParameters, BlockSettings, tuple]:
    """Splits the arguments of an operator after ``keep``."""
    end = _COUNT + len(BlockSettings._fields)
    parameters = BlockParameters(*arguments[:_COUNT])
    return parameters, BlockSettings(*arguments[_COUNT:end]), arguments[end:]


def _needed(features: Tensor, rest: tuple) -> list[tuple[str, Tensor]]:
    """Returns the names and tensors that :func:`_block_backward` computes gradients for."""
    parameters, _, (needs,) = _split(rest)
    tensors = {'features': features, **parameters._asdict()}
    return [item for item, needed in zip(tensors.items(), needs, strict=True) if needed]


def _own(grad: Tensor, like: Tensor) -> Tensor:
    """Converts a gradient to what the fakes promise; operators may not return views."""
    grad = grad.to(like.dtype).contiguous()
    return grad if grad.untyped_storage().nbytes() == grad.nbytes else grad.clone()
