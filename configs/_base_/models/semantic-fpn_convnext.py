# Semantic FPN on a ConvNeXt pyramid: mmseg's own segmentor with another backbone.
_base_ = 'mmseg::_base_/models/fpn_r50.py'

custom_imports = dict(imports=['convnext_backbone'])

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
