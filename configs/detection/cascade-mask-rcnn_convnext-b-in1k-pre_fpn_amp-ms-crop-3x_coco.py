# Cascade Mask R-CNN, ConvNeXt-B, COCO, 3x (ConvNeXt, appendix A.3, table 3; its repository).
# Published, ImageNet-1K pre-training: box AP 52.7, mask AP 45.6, 146 M parameters, 964 GFLOPs.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnext_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw-layer-decay_amp_3x.py',
    '../_base_/detection_runtime.py',
]

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224.pth'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.7,
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(decay_rate=0.8, num_layers=12),
)
