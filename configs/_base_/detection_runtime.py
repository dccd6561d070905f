# mmdet's runtime settings, with hooks for exact resuming and checks of data and model.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook'),
)
