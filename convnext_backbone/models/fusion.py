"""Checks whether fused operators of :mod:`convnext_backbone.ops` may replace a module's own code.

They may if they give the same result. This module checks the switch, the inner modules and the
tensors. The classes that can run fused call these checks and add their own.

``fused=False`` and ``CONVNEXT_FUSED=0`` make every block and every norm plain. Without them, the
modules run by themselves where fused operators cannot: under the transforms of ``torch.func``
(``vmap``, ``grad``, ``jacrev``, ...), in forward-mode differentiation, in dispatch and function
modes, and if a module, its forward or a function that it calls was replaced. The backward pass of a
fused operator supports ``create_graph=True``, ``is_grads_batched=True`` and transforms.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from types import BuiltinFunctionType, ModuleType

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..ops import constant_while_traced, is_transformed

# The environment variable that modules with ``fused=None`` follow, similar to TIMM_FUSED_ATTN.
VARIABLE = 'CONVNEXT_FUSED'

DEVICES = ('cpu', 'cuda')

# Methods that an inner module may have as an attribute of its own.
METHODS = ('forward', 'normalize', '_conv_forward', '_call_impl')

_GLOBAL_HOOKS = (
    '_global_forward_hooks',
    '_global_forward_pre_hooks',
    '_global_backward_hooks',
    '_global_backward_pre_hooks',
)

# The functions that fused operators replace, as they were defined: by owner (a class or a module)
# and name. A function that was patched before it was noted here is None. This is a list, as the
# compiler of torch 2.6 cannot trace a dict with tuples as keys.
_replaced: list[tuple[type | ModuleType, str, object]] = []


def fused_replaces(owner: type | ModuleType, *names: str) -> None:
    """Notes that fused operators replace these functions. If one is patched, modules run.

    For a class, the calls of its instances are noted, too.
    """
    is_module = isinstance(owner, ModuleType)
    homes = {owner.__name__} if is_module else {c.__module__ for c in owner.__mro__}
    for name in (*names, *(() if is_module else ('__call__', '_call_impl'))):
        function = getattr(owner, name)
        defined_in = getattr(function, '__globals__', {}).get('__name__')
        is_original = isinstance(function, BuiltinFunctionType) or defined_in in homes
        _replaced.append((owner, name, function if is_original else None))


fused_replaces(nn.Conv2d, 'forward', '_conv_forward')
fused_replaces(nn.Linear, 'forward')
fused_replaces(nn.GELU, 'forward')
fused_replaces(nn.Identity, 'forward')
fused_replaces(F, 'conv2d', 'linear', 'gelu', 'layer_norm')


def obstacle_in_functions() -> str | None:
    """Returns which function that fused operators replace was patched, or None."""
    for owner, name, function in _replaced:
        if getattr(owner, name) is not function:
            return f'{owner.__name__}.{name} was patched'
    return None


def is_exported() -> bool:
    """Whether an exporter or a tracer runs the code. They do not know the fused operators."""
    return _is_exporting() or torch.jit.is_tracing()


def _is_exporting_before_2_7() -> bool:
    """Only torch.export without Dynamo, which is its ``strict=False``, sets just one of the two."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


_is_exporting = getattr(torch.compiler, 'is_exporting', _is_exporting_before_2_7)


def obstacle_in_switch(fused: bool | None) -> str | None:
    """Returns which setting switches the fused operators off, or None if they are on.

    Args:
        fused: What the module was built with. None follows the environment variable
            ``CONVNEXT_FUSED``: ``1`` (default) or ``0``.

    Raises:
        ValueError: If the environment variable has another value.
    """
    if fused is not None:
        return None if fused else 'fused=False'
    value = os.environ.get(VARIABLE, '1')
    if value not in ('0', '1'):
        raise ValueError(f'the environment variable {VARIABLE} must be 0 or 1, got {value!r}')
    return None if value == '1' else f'{VARIABLE}=0'


def obstacle_in_modules(module: nn.Module, types: Mapping[str, tuple[type, ...]]) -> str | None:
    """Returns why the inner modules must be called, or None if fused operators may replace them.

    Args:
        module: The module that would run fused.
        types: The exact types that its inner modules may have, by attribute name.
    """
    for name, allowed in types.items():
        inner = getattr(module, name)
        if type(inner) not in allowed:
            return f'their {name} is {type(inner).__name__}, which no fused function replaces'
        for method in METHODS:
            if method in inner.__dict__:
                return f'the {method} of their {name} was replaced'
        if has_hooks(inner):
            return f'hooks are registered on their {name}'
    if any(getattr(nn.modules.module, hooks) for hooks in _GLOBAL_HOOKS):
        return 'hooks are registered on all modules'
    return None


def obstacle_in_tensors(tensors: list[Tensor]) -> str | None:
    """Returns why fused operators cannot use these tensors, or None if they can."""
    subclasses = {type(t) for t in tensors} - {Tensor, nn.Parameter}
    if subclasses:
        names = sorted(subclass.__name__ for subclass in subclasses)
        return f'they are given {", ".join(names)} instead of plain tensors'
    # These two checks cannot be traced. The operators of compiled models resolve signs, and torch
    # compiles nothing in dispatch modes.
    eager = not torch.compiler.is_compiling()
    if eager and any(map(Tensor.is_neg, tensors)):
        return 'a tensor is a view whose sign is not resolved yet: call resolve_neg()'
    devices = {t.device for t in tensors}
    if len(devices) > 1 or tensors[0].device.type not in DEVICES:
        return f'their tensors are on {", ".join(sorted(map(str, devices)))}'
    if tensors[0].numel() == 0:
        return 'the feature maps are empty'
    if is_transformed() or (eager and _get_current_dispatch_mode() is not None):
        return 'a function transform, forward-mode differentiation or a dispatch mode is active'
    if {type(mode) for mode in _get_current_function_mode_stack()} - {DeviceContext}:
        return 'a function mode is active'
    return None


def product_dtype(features: Tensor) -> torch.dtype:
    """Returns the dtype of matrix products of ``features``, which autocast can change."""
    device = features.device.type
    if device in DEVICES and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features.dtype


@constant_while_traced
def log_once(message: str) -> None:
    """Logs a message once per process. A compiled model logs while it is compiled."""
    _log_once(message)


@functools.cache
def _log_once(message: str) -> None:
    print_log(message, logger='current')


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run in the module's forward or backward pass."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
