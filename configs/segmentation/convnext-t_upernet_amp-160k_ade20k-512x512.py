# UPerNet, ConvNeXt-T, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-1K pre-training: mIoU 46.0 (single scale), 46.7 (multi-scale),
# 60 M parameters, 939 GFLOPs at 2048 x 512.
_base_ = [
    '../_base_/models/upernet_convnext.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/adamw-stage-decay_amp_160k.py',
    '../_base_/segmentation_runtime.py',
]

crop_size = (512, 512)
checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),
)
