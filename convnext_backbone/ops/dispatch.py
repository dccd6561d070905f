"""The choice between the fused block and the layer's own modules."""

from __future__ import annotations

import functools

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from . import portable
from .block import fused_block
from .native import have_kernels_for, pick_kernels
from .norm import FusedNorm
from .parameters import BlockParameters, BlockSettings

DEVICES = ('cpu', 'cuda')
# The types of a block's tensors: one of them for all, or under autocast the last two together.
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def run_layer(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    """Runs a :class:`ConvNextLayer`, fused wherever that gives what its modules give.

    The first time a way is taken in a process, one line of the log says which one and why.

    Args:
        layer: The layer. With ``layer.with_cp`` the backward pass computes again what it can.
        hidden_states: Of shape ``(N, C, H, W)``.

    Returns:
        A map of the same shape; from the fused block, in channels_last memory.
    """
    if _is_traced():
        return _run_modules(layer, hidden_states)
    obstacle = _obstacle_in_modules(layer)
    if obstacle is None:
        settings, parameters = _settings(layer, hidden_states), _parameters(layer)
        obstacle = _obstacle_in_tensors(hidden_states, settings, parameters)
    if obstacle is not None:
        _log_once(f'ConvNeXt blocks run module by module: {obstacle}')
        return _run_modules(layer, hidden_states)
    map = hidden_states.permute(0, 2, 3, 1).contiguous()
    _log_once(_kernels_message(map, settings.dtype))
    keep = layer.drop_path.factors(hidden_states)
    return fused_block(map, keep, settings, parameters).permute(0, 3, 1, 2)


def run_norm(norm: nn.Module, features: Tensor) -> Tensor:
    """Runs a channels-first :class:`ConvNextLayerNorm`, compiled wherever that gives the same.

    Args:
        norm: The norm. With ``norm.contiguous`` the output lies in memory as ``(N, C, H, W)``.
        features: Of shape ``(N, C, ...)``.
    """
    if features.ndim == 4 and not _is_traced() and _norm_obstacle(norm, features) is None:
        map = features.permute(0, 2, 3, 1)
        if pick_kernels(map, norm.weight.dtype) is not portable:
            weight, bias = (t.float().contiguous() for t in (norm.weight, norm.bias))
            normed = FusedNorm.apply(map.contiguous(), weight, bias, norm.eps, norm.contiguous)
            return normed if norm.contiguous else normed.permute(0, 3, 1, 2)
    normed = norm.normalize(features.movedim(1, -1)).movedim(-1, 1)
    return normed.contiguous() if norm.contiguous else normed


def _is_traced() -> bool:
    """Compilers and exporters see the modules: they fuse better, or know no other operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _run_modules(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    if layer.with_cp and torch.is_grad_enabled():
        return checkpoint(layer.run_modules, hidden_states, use_reentrant=False)
    return layer.run_modules(hidden_states)


def _obstacle_in_modules(layer: nn.Module) -> str | None:
    """Why the layer's modules must be called themselves, or None if they need not."""
    if _is_overridden(layer, 'run_modules', beside='PARTS'):
        return f'{type(layer).__name__} has a run_modules of its own'
    for name, types in layer.PARTS.items():
        module = getattr(layer, name)
        if type(module) not in types:
            return f'their {name} was replaced by {module}'
        if 'forward' in vars(module):
            return f'the forward of their {name} was replaced'
        if _has_hooks(module):
            return f'hooks are registered on their {name}'
    if nn.modules.module._has_any_global_hook():
        return 'hooks are registered on all modules'
    if layer.act.approximate != 'none':
        return f'their activation is {layer.act}'
    conv = layer.dwconv
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode
    if geometry != ((7, 7), (1, 1), (3, 3), (1, 1), 'zeros') or conv.groups != conv.in_channels:
        return f'their dwconv is {conv}'
    return None


def _obstacle_in_tensors(
    hidden_states: Tensor, settings: BlockSettings, parameters: BlockParameters
) -> str | None:
    """Why the fused block cannot take these tensors, or None if it can."""
    dim = hidden_states.shape[1]
    shapes = BlockParameters(
        *((dim, 1, 7, 7), (dim,), (dim,), (dim,)),
        *((4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)),
        *((dim,), (1, 1, 1, 4 * dim), (1, 1, 1, 4 * dim)),
    )
    for name, shape, t in zip(BlockParameters._fields, shapes, parameters, strict=True):
        optional = name in ('layer_scale', 'grn_weight', 'grn_bias')
        if not (t is None and optional) and getattr(t, 'shape', None) != shape:
            found = 'missing' if t is None else f'of shape {tuple(t.shape)}'
            return f'with {dim} channels their {name} must be of shape {shape} and is {found}'
    tensors = [hidden_states, *(t for t in parameters if t is not None)]
    obstacle = _obstacle_to_kernels(tensors)
    if obstacle is not None:
        return obstacle
    dtypes = {t.dtype for t in tensors}
    autocast = torch.is_autocast_enabled(hidden_states.device.type)
    allowed = DTYPES[1:] if autocast else [settings.dtype]
    if settings.dtype not in DTYPES or not dtypes.issubset(allowed):
        names = ', '.join(sorted(map(str, dtypes)))
        return (
            f'they hold {names} and compute in {settings.dtype}, not all in one of float64, '
            'float32 and bfloat16'
        )
    return None


def _norm_obstacle(norm: nn.Module, features: Tensor) -> str | None:
    """Why a norm's own ``normalize`` must be called, or None if it need not."""
    if _is_overridden(norm, 'normalize', beside='forward'):
        return f'{type(norm).__name__} has a normalize of its own'
    if not norm.weight.shape == norm.bias.shape == features.shape[1:2]:
        return 'it has another number of channels'
    return _obstacle_to_kernels([features, norm.weight, norm.bias])


def _obstacle_to_kernels(tensors: list[Tensor]) -> str | None:
    """Why operators below autograd cannot take these tensors, or None if they can."""
    subclasses = {type(t).__name__ for t in tensors} - {'Tensor', 'Parameter'}
    if subclasses:
        return f'they are given {", ".join(sorted(subclasses))} instead of plain tensors'
    devices = {t.device for t in tensors}
    if len(devices) > 1 or tensors[0].device.type not in DEVICES:
        return f'their tensors lie on {", ".join(sorted(map(str, devices)))}'
    if tensors[0].numel() == 0:
        return 'the maps are empty'
    if (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
    ):
        return 'a function transform, forward-mode differentiation or a dispatch mode is active'
    return None


def _is_overridden(module: nn.Module, method: str, beside: str) -> bool:
    """Whether a method is not that of the class which also defines ``beside``."""
    owner = next(c for c in type(module).__mro__ if method in vars(c))
    return beside not in vars(owner) or method in vars(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _product_dtype(hidden_states: Tensor) -> torch.dtype:
    device = hidden_states.device.type
    if device in DEVICES and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden_states.dtype


def _settings(layer: nn.Module, hidden_states: Tensor) -> BlockSettings:
    dtype = _product_dtype(hidden_states)
    output_dtype = torch.promote_types(hidden_states.dtype, dtype)
    if layer.layer_scale_parameter is not None:
        output_dtype = torch.promote_types(output_dtype, layer.layer_scale_parameter.dtype)
    return BlockSettings(
        dtype=dtype,
        output_dtype=output_dtype,
        norm_eps=layer.layernorm.eps,
        grn_eps=getattr(layer.grn, 'eps', 0.0),
        lean=layer.with_cp,
    )


def _parameters(layer: nn.Module) -> BlockParameters:
    return BlockParameters(
        depthwise_weight=layer.dwconv.weight,
        depthwise_bias=layer.dwconv.bias,
        norm_weight=layer.layernorm.weight,
        norm_bias=layer.layernorm.bias,
        weight1=layer.pwconv1.weight,
        bias1=layer.pwconv1.bias,
        weight2=layer.pwconv2.weight,
        bias2=layer.pwconv2.bias,
        layer_scale=layer.layer_scale_parameter,
        grn_weight=getattr(layer.grn, 'weight', None),
        grn_bias=getattr(layer.grn, 'bias', None),
    )


def _kernels_message(map: Tensor, dtype: torch.dtype) -> str:
    if pick_kernels(map, dtype) is not portable:
        return 'ConvNeXt blocks run fused, with compiled kernels'
    if have_kernels_for(map, dtype):
        return (
            'ConvNeXt blocks run fused, but without compiled kernels: small images take longer '
            'than module by module. python -m convnext_backbone.ops.build compiles them'
        )
    return f'ConvNeXt blocks of {map.shape[-1]} channels in {dtype} run fused, in torch operators'


@functools.cache
def _log_once(message: str) -> None:
    print_log(message, logger='current')
