# RTMDet-l, ConvNeXt-B, COCO, 100 epochs, 128 images per batch: mmdet's recipe.
# Published by mmdet at 640 x 640, with the same pre-training (ImageNet-22K, then 1K at 384 pixels)
# but another implementation of the backbone: box AP 53.1. Not trained here.
_base_ = 'mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py'
custom_imports = dict(imports=['convnext_backbone'])
default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook'),
)

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_1k_384.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='base',
        drop_path_rate=0.7,
        layer_scale_init_value=1.0,
        out_features=('stage2', 'stage3', 'stage4'),
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    # The head's scales share their convolutions.
    paramwise_cfg=dict(
        decay_rate=0.8, decay_type='layer_wise', num_layers=12, bypass_duplicate=True
    ),
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
)
auto_scale_lr = dict(base_batch_size=128)
