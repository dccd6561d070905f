# Mask R-CNN with ConvNeXt tiny for 3 classes, 440 images with objects.
# Written by tools/new_config.py; change what you like.
_base_ = '../configs/detection/mask-rcnn_convnext-t_fpn_amp-ms-crop-3x_coco.py'
checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'

# In the order of the annotation files, which decides the labels.
classes = ('circle', 'square', 'triangle')
data_root = 'data/shapes/'

# in_channels are the channels of stage1, stage2, stage3, stage4.
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes)),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root=data_root, ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'), metainfo=dict(classes=classes),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'), metainfo=dict(classes=classes),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

# 36 epochs, 7920 steps of 2 images; the recipe has 36 epochs of 117266.
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=36, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
    dict(type='MultiStepLR', end=36, milestones=[27, 33], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=2, save_best='coco/segm_mAP'))

# Scaled linearly from 0.0001 for 16 images per step; decay_rate lowers it towards the stem.
optim_wrapper = dict(
    _delete_=True, type='AmpOptimWrapper',
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.95, num_layers=6),
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05, lr=1.25e-05),
)
auto_scale_lr = dict(enable=False, base_batch_size=2)
