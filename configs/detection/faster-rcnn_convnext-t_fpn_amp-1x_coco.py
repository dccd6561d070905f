# Faster R-CNN, ConvNeXt-T, COCO, 1x.
# A suggestion: no AP is published for it, and it was not trained here. Learning rates follow the
# published Mask R-CNN, with half of its drop path for a third of its epochs.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw-layer-decay_amp_1x.py',
    '../_base_/detection_runtime.py',
]
custom_imports = dict(imports=['convnext_backbone'])

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        drop_path_rate=0.2,
        layer_scale_init_value=1.0,
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.95, num_layers=6),
)
