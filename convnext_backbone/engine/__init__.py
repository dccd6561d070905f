"""Training with mmengine's runner: learning-rate decay and the FSDP policy."""

from .fsdp import convnext_auto_wrap_policy
from .lr_decay import ConvNextLayerDecayOptimWrapperConstructor

__all__ = ['ConvNextLayerDecayOptimWrapperConstructor', 'convnext_auto_wrap_policy']
