# SegFormer's all-MLP head on the four maps of a ConvNeXt.
_base_ = './segmentor_convnext.py'

model = dict(
    decode_head=dict(
        type='SegformerHead',
        in_channels=[96, 192, 384, 768],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
)
