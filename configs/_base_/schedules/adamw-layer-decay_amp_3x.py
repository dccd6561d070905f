# The same for 36 epochs.
_base_ = './adamw-layer-decay_amp_1x.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
