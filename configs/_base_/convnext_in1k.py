# ImageNet-1K from scratch, 300 epochs (ConvNeXt, appendix A.1; official repository).
# The images are in data/imagenet/{train,val}/CLASS/.
custom_imports = dict(imports=['convnext_backbone.data'])

num_labels = 1000
model = dict(
    type='ConvNextForImageClassification',
    num_labels=num_labels,
    problem_type='single_label_classification',
    label_smoothing=0.1,
    layer_scale_init_value=1e-6,
    data_preprocessor=dict(
        type='MixingDataPreprocessor',
        num_labels=num_labels,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)

# RandAugment 9/0.5 in the increasing form: two operations per image, each with probability 0.5.
# The recipe draws magnitudes from a normal distribution with mean 9 (of 10) and deviation 0.5. Here
# they are uniform from 8.1 to 9.9, with about the same mean and deviation.
grey = dict(prob=0.5, img_border_value=(103.53, 116.28, 123.675))
aug_space = [
    [dict(type='mmdet.AutoContrast', prob=0.5)],
    [dict(type='mmdet.Equalize', prob=0.5)],
    [dict(type='mmdet.Invert', prob=0.5)],
    [dict(type='mmdet.Posterize', prob=0.5, min_mag=1.0, max_mag=1.0)],
    [dict(type='mmdet.Solarize', prob=0.5, min_mag=2.6, max_mag=48.6)],
    [dict(type='mmdet.SolarizeAdd', prob=0.5, min_mag=89.1, max_mag=108.9)],
    [dict(type='mmdet.Rotate', min_mag=24.3, max_mag=29.7, **grey)],
    [dict(type='mmdet.ShearX', min_mag=13.7, max_mag=16.5, **grey)],
    [dict(type='mmdet.ShearY', min_mag=13.7, max_mag=16.5, **grey)],
    [dict(type='mmdet.TranslateX', min_mag=0.36, max_mag=0.45, **grey)],
    [dict(type='mmdet.TranslateY', min_mag=0.36, max_mag=0.45, **grey)],
]
for _name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
    _weaker = dict(type=f'mmdet.{_name}', prob=0.5, min_mag=0.11, max_mag=0.27)
    _stronger = dict(type=f'mmdet.{_name}', prob=0.5, min_mag=1.73, max_mag=1.89)
    aug_space.append([dict(type='RandomChoice', transforms=[[_weaker], [_stronger]])])
del _name, _weaker, _stronger

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ConvNextRandomResizedCrop', scale=224, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdet.RandAugment', aug_space=aug_space, aug_num=2),
    dict(type='ConvNextRandomErasing', prob=0.25),
    dict(type='ConvNextPackInputs'),
]
# The short side becomes 256; the long side is not limited.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(100000, 256), keep_ratio=True, interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='ConvNextPackInputs'),
]

data_root = 'data/imagenet/'
train_dataloader = dict(
    batch_size=128,  # on 32 GPUs: 4096 per step
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ConvNextImageFolder', data_root=data_root + 'train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ConvNextImageFolder',
        data_root=data_root + 'val',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ConvNextAccuracy', topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=20, end=300, eta_min=1e-6, convert_to_iter_based=True),
]
# On fewer GPUs: auto_scale_lr.enable=True, or a larger optim_wrapper.accumulative_counts.
auto_scale_lr = dict(base_batch_size=4096, enable=False)

custom_hooks = [dict(type='EMAHook', momentum=1e-4)]
default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook', from_scratch=True),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto'),
)
