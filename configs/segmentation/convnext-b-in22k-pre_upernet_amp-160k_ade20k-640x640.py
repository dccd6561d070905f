# UPerNet, ConvNeXt-B, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-22K pre-training: mIoU 52.6 (single scale), 53.1 (multi-scale),
# 122 M parameters, 1828 GFLOPs at 2560 x 640.
_base_ = [
    '../_base_/models/upernet_convnext.py',
    '../_base_/datasets/ade20k_640x640.py',
    '../_base_/schedules/adamw-stage-decay_amp_160k.py',
    '../_base_/segmentation_runtime.py',
]

crop_size = (640, 640)
checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth'
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(426, 426)),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
