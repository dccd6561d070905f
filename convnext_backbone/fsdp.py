"""How FSDP cuts a model: at the blocks of its ConvNeXts."""

from __future__ import annotations

from mmengine.registry import FUNCTIONS
from torch import nn

from .layers import ConvNextLayer


@FUNCTIONS.register_module()
def convnext_auto_wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Makes every :class:`ConvNextLayer` a unit of its own, gathered and freed as a whole.

    A config names it: ``model_wrapper=dict(auto_wrap_policy='convnext_auto_wrap_policy')``.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks to look into the module rather than to wrap it.
        nonwrapped_numel: Number of parameters in it that no unit holds yet; not used.
    """
    return recurse or isinstance(module, ConvNextLayer)
