# Mask R-CNN on a ConvNeXt pyramid: mmdet's own detector with another backbone.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

custom_imports = dict(imports=['convnext_backbone'])

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
