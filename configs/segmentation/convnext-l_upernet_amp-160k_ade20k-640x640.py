# UPerNet, ConvNeXt-L, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-22K pre-training: mIoU 53.2 (single scale), 53.7 (multi-scale),
# 235 M parameters, 2458 GFLOPs at 2560 x 640.
# The official file trains this model in float32. Mixed precision is the default here, for its
# memory; --cfg-options optim_wrapper.type=OptimWrapper trains as the official file does.
_base_ = './convnext-b-in22k-pre_upernet_amp-160k_ade20k-640x640.py'

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth'
model = dict(
    backbone=dict(
        arch='large',
        init_cfg=dict(checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
