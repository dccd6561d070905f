"""The FSDP policy: every ConvNeXt block is one unit."""

from __future__ import annotations

from mmengine.registry import FUNCTIONS
from torch import nn

from ..models.blocks import ConvNextLayer


@FUNCTIONS.register_module()
def convnext_auto_wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Makes every :class:`ConvNextLayer` an FSDP unit, which is gathered and freed as a whole.

    In a config: ``model_wrapper=dict(auto_wrap_policy='convnext_auto_wrap_policy')``.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks to visit the module's children, not to wrap the module.
        nonwrapped_numel: Number of the module's parameters that are in no unit yet; unused.
    """
    return recurse or isinstance(module, ConvNextLayer)
