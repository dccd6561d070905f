# UPerNet with an auxiliary head on stage 3: mmseg's own segmentor with another backbone.
_base_ = 'mmseg::_base_/models/upernet_r50.py'

custom_imports = dict(imports=['convnext_backbone'])

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
