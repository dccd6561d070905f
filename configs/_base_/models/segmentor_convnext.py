# Settings of all segmentors. mmseg's own configs cannot be bases here: mmengine finds mmseg:: only
# under upstream's package name, not under the OneDL fork's.
custom_imports = dict(imports=['convnext_backbone'])

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='ConvNextBackbone',
        arch='tiny',
        out_features=('stage1', 'stage2', 'stage3', 'stage4'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
