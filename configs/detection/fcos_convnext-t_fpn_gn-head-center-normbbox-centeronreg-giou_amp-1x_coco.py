# FCOS with mmdet's improvements, ConvNeXt-T, COCO, 1x; images are normalised as in pre-training.
# A suggestion: no AP is published for it, and it was not trained here. Learning rates follow the
# published Mask R-CNN, with half of its drop path for a third of its epochs.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'
custom_imports = dict(imports=['convnext_backbone'])
default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook'),
)

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        drop_path_rate=0.2,
        layer_scale_init_value=1.0,
        out_features=('stage2', 'stage3', 'stage4'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
