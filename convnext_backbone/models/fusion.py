"""Checks whether fused operators of :mod:`convnext_backbone.ops` may replace a module's own code.

They may if they give the same result. This module checks the switch, the inner modules and the
tensors. The classes that can run fused call these checks and add their own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

# The environment variable that modules with ``fused=None`` follow, similar to TIMM_FUSED_ATTN.
VARIABLE = 'CONVNEXT_FUSED'

DEVICES = ('cpu', 'cuda')

_GLOBAL_HOOKS = (
    '_global_forward_hooks',
    '_global_forward_pre_hooks',
    '_global_backward_hooks',
    '_global_backward_pre_hooks',
)


def is_traced() -> bool:
    """Whether a compiler or an exporter runs the code.

    They need the modules: compilers fuse them, and exporters do not know the fused operators.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


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
            return f'their {name} was replaced by {inner}'
        if 'forward' in vars(inner):
            return f'the forward of their {name} was replaced'
        if _has_hooks(inner):
            return f'hooks are registered on their {name}'
    if any(getattr(nn.modules.module, hooks) for hooks in _GLOBAL_HOOKS):
        return 'hooks are registered on all modules'
    return None


def obstacle_in_tensors(tensors: list[Tensor]) -> str | None:
    """Returns why fused operators cannot use these tensors, or None if they can."""
    subclasses = {type(t).__name__ for t in tensors} - {'Tensor', 'Parameter'}
    if subclasses:
        return f'they are given {", ".join(sorted(subclasses))} instead of plain tensors'
    devices = {t.device for t in tensors}
    if len(devices) > 1 or tensors[0].device.type not in DEVICES:
        return f'their tensors are on {", ".join(sorted(map(str, devices)))}'
    if tensors[0].numel() == 0:
        return 'the feature maps are empty'
    if (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
    ):
        return 'a function transform, forward-mode differentiation or a dispatch mode is active'
    return None


def product_dtype(features: Tensor) -> torch.dtype:
    """Returns the dtype of matrix products of ``features``, which autocast can change."""
    device = features.device.type
    if device in DEVICES and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features.dtype


@functools.cache
def log_once(message: str) -> None:
    """Logs a message once per process."""
    print_log(message, logger='current')


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
