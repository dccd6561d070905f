# UPerNet, ConvNeXt-B, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-1K pre-training: mIoU 49.1 (single scale), 49.9 (multi-scale),
# 122 M parameters, 1170 GFLOPs at 2048 x 512.
_base_ = './convnext-t_upernet_amp-160k_ade20k-512x512.py'

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224.pth'
model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
