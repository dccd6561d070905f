# ConvNeXt's segmentation recipe: 160k iterations in mixed precision, AdamW, learning rates that
# decrease per stage towards the stem (ConvNeXt, appendix A.3; official repository).
optim_wrapper = dict(
    type='AmpOptimWrapper',
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=16000),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=False)
