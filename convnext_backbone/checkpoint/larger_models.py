"""Lets a model inside of a larger model refuse a state dict before any part is loaded.

torch loads the parts of a model in the order in which they were registered. Without this, a head
that comes before the backbone would be loaded already when the backbone refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .loading import adopt_state_dict
from .pretrained import LoadsAnyCheckpoint

# The attribute in which wrappers of FSDP, of the compiler and of activation checkpointing keep the
# module.
WRAPPERS = ('_fsdp_wrapped_module', '_orig_mod', '_checkpoint_wrapped_module')

# The modules that each module was registered in.
_parents: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()


def guard_larger_models() -> None:
    """Gives every module that gets a model of this package a check, from now on.

    It runs before a state dict is loaded into the module, and raises the error that the model would
    raise later.
    """
    register_module_module_registration_hook(_guard)


def _guard(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if submodule is None:
        return
    _parents.setdefault(submodule, WeakSet()).add(module)
    if any(isinstance(part, LoadsAnyCheckpoint) for part in submodule.modules()):
        _guard_with_parents(module)


def _guard_with_parents(module: nn.Module) -> None:
    """Gives the check to a module and to all modules that contain it."""
    if not _is_guarded(module):
        module.register_load_state_dict_pre_hook(_check)
    for parent in _parents.get(module, ()):
        if not _is_guarded(parent):
            _guard_with_parents(parent)


def _is_guarded(module: nn.Module) -> bool:
    hooks = module._load_state_dict_pre_hooks.values()
    return any(getattr(hook, 'hook', None) is _check for hook in hooks)


def _check(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
    for name, model in _models(module, prefix):
        # Wrappers such as FSDP rename the tensors on the way: the model itself checks them later.
        is_wrapped = any(part in WRAPPERS for part in name.split('.'))
        if not is_wrapped or any(isinstance(k, str) and k.startswith(name) for k in state_dict):
            adopt_state_dict(model.checkpoint_target(), dict(state_dict), name, log=False)


def _models(module: nn.Module, prefix: str) -> Iterator[tuple[str, LoadsAnyCheckpoint]]:
    """Yields the models inside of a module, with their key prefixes; not those inside of others."""
    for name, child in module.named_children():
        if isinstance(child, LoadsAnyCheckpoint):
            yield f'{prefix}{name}.', child
        else:
            yield from _models(child, f'{prefix}{name}.')
