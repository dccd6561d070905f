# mmdet's runtime settings, with hooks for exact resuming and against unsupported memory layouts.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    layout=dict(type='ConvNextLayoutHook'),
)
