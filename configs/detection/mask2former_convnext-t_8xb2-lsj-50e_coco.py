# Mask2Former, instance segmentation, ConvNeXt-T, COCO, 50 epochs, 16 images per batch.
# A suggestion: no AP is published for it, and it was not trained here. The optimiser is mmdet's,
# but layer-wise decay replaces its learning rate multiplier of 0.1 for the backbone.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
custom_imports = dict(imports=['convnext_backbone'])
default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    setup=dict(type='ConvNextSetupHook'),
)

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        drop_path_rate=0.3,
        layer_scale_init_value=1.0,
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        decay_rate=0.7,
        decay_type='layer_wise',
        num_layers=6,
        custom_keys=dict(
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
        ),
    ),
)
