# UPerNet, ConvNeXt-S, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-1K pre-training: mIoU 48.7 (single scale), 49.6 (multi-scale),
# 82 M parameters, 1027 GFLOPs at 2048 x 512.
_base_ = './convnext-t_upernet_amp-160k_ade20k-512x512.py'

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_small_1k_224.pth'
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint=checkpoint),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
