# SegFormer's all-MLP head on the four maps of a ConvNeXt: mmseg's own head with another backbone.
_base_ = 'mmseg::_base_/models/segformer_mit-b0.py'

custom_imports = dict(imports=['convnext_backbone'])

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNextBackbone',
        arch='tiny',
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
