"""Training with mmengine's runner: learning-rate decay, the FSDP policy, resuming and checks."""

from .dataset_checks import check_datasets
from .fsdp import convnext_auto_wrap_policy
from .layout_checks import check_layout
from .lr_decay import ConvNextLayerDecayOptimWrapperConstructor
from .operators import missing_operators
from .resume_hook import ConvNextResumeHook
from .resuming import find_resumable, resume_from
from .setup_hook import ConvNextSetupHook, check_model

__all__ = [
    'ConvNextLayerDecayOptimWrapperConstructor',
    'ConvNextResumeHook',
    'ConvNextSetupHook',
    'check_datasets',
    'check_layout',
    'check_model',
    'convnext_auto_wrap_policy',
    'find_resumable',
    'missing_operators',
    'resume_from',
]
