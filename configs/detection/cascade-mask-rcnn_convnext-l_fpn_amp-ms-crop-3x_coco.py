# Cascade Mask R-CNN, ConvNeXt-L, COCO, 3x (ConvNeXt, appendix A.3, table 3; its repository).
# Published, ImageNet-22K pre-training: box AP 54.8, mask AP 47.6, 255 M parameters, 1354 GFLOPs.
# The official file trains this model in float32. Mixed precision is the default here, for its
# memory; --cfg-options optim_wrapper.type=OptimWrapper trains as the official file does.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnext_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw-layer-decay_amp_3x.py',
    '../_base_/detection_runtime.py',
]

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth'
model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.7,
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.7, num_layers=12),
)
