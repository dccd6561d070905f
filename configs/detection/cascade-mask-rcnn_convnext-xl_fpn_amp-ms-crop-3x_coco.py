# Cascade Mask R-CNN, ConvNeXt-XL, COCO, 3x (ConvNeXt, appendix A.3, table 3; its repository).
# Published, ImageNet-22K pre-training: box AP 55.2, mask AP 47.7, 407 M parameters, 1898 GFLOPs.
# The official file trains this model in float32. Mixed precision is the default here, for its
# memory; --cfg-options optim_wrapper.type=OptimWrapper trains as the official file does.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnext_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw-layer-decay_amp_3x.py',
    '../_base_/detection_runtime.py',
]

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth'
model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.8,
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.7, num_layers=12),
)
