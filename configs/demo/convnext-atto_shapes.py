# A ConvNeXt-atto that learns to classify generated shapes within minutes on two CPU cores.
# The data comes from:
# python tools/dataset_converters/make_shapes_folder.py data/shapes_folder --train 4000 --val 200
custom_imports = dict(imports=['convnext_backbone.data'])

classes = ('circle', 'square', 'triangle')
data_root = 'data/shapes_folder/'

model = dict(
    type='ConvNextForImageClassification',
    arch='atto',
    num_labels=len(classes),
    problem_type='single_label_classification',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ConvNextPackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ConvNextPackInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ConvNextImageFolder',
        data_root=data_root + 'train',
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ConvNextImageFolder',
        data_root=data_root + 'val',
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ConvNextAccuracy', topk=(1,))
test_evaluator = val_evaluator

max_epochs = 10
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
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
)
log_processor = dict(window_size=10)
randomness = dict(seed=0)
