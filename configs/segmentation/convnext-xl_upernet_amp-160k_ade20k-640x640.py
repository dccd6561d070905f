# UPerNet, ConvNeXt-XL, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-22K pre-training: mIoU 53.6 (single scale), 54.0 (multi-scale),
# 391 M parameters, 3335 GFLOPs at 2560 x 640.
# The official file trains this model in float32. Mixed precision is the default here, for its
# memory; --cfg-options optim_wrapper.type=OptimWrapper trains as the official file does.
_base_ = './convnext-b-in22k-pre_upernet_amp-160k_ade20k-640x640.py'

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth'
model = dict(
    backbone=dict(
        arch='xlarge',
        init_cfg=dict(checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=8e-5))
