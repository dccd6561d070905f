"""Training with mmengine's runner: learning-rate decay, the FSDP policy, resuming and layouts."""

from .fsdp import convnext_auto_wrap_policy
from .layout_hook import ConvNextLayoutHook, check_layout
from .lr_decay import ConvNextLayerDecayOptimWrapperConstructor
from .operators import missing_operators
from .resume_hook import ConvNextResumeHook
from .resuming import find_resumable, resume_from

__all__ = [
    'ConvNextLayerDecayOptimWrapperConstructor',
    'ConvNextLayoutHook',
    'ConvNextResumeHook',
    'check_layout',
    'convnext_auto_wrap_policy',
    'find_resumable',
    'missing_operators',
    'resume_from',
]
