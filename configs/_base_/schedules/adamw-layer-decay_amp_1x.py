# 12 epochs of AdamW in mixed precision, with lower learning rates towards the stem. Configs add
# optimizer.lr, paramwise_cfg.decay_rate and paramwise_cfg.num_layers.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_type='layer_wise'),
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05),
)
