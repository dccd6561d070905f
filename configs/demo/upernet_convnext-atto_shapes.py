# A small UPerNet that learns to segment generated shapes from scratch within minutes on two CPU
# cores. The data comes from: python tools/dataset_converters/make_shapes_dataset.py data/shapes
_base_ = [
    '../_base_/models/upernet_convnext.py',
    '../_base_/segmentation_runtime.py',
]

metainfo = dict(
    classes=('background', 'circle', 'square', 'triangle'),
    palette=[[64, 64, 64], [213, 94, 0], [0, 114, 178], [0, 158, 115]],
)

crop_size = (128, 128)  # the whole image
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='atto', layer_scale_init_value=1.0),
    decode_head=dict(
        in_channels=[40, 80, 160, 320],
        channels=64,
        num_classes=len(metainfo['classes']),
        norm_cfg=dict(type='GN', num_groups=8),
        # 90 % of the pixels are background. Unweighted, the model first learns only background.
        loss_decode=dict(class_weight=[0.4, 1, 1, 1]),
    ),
    auxiliary_head=None,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

data_root = 'data/shapes/'
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train', seg_map_path='masks/train'),
        img_suffix='.png',
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='masks/val'),
        img_suffix='.png',
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

max_epochs = 6
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, convert_to_iter_based=True),
]

default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook', from_scratch=True),
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', interval=max_epochs),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(window_size=10)
randomness = dict(seed=0)
