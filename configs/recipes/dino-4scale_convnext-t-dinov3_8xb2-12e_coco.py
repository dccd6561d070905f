# DINO with four scales on a DINOv3-trained ConvNeXt-T, all layers tuned; COCO, 12 epochs.
# A suggestion: nothing is published for it, and it was not trained here. Small learning rates near
# the stem keep what DINOv3 has learned. The weights have their own terms (DINOv3 License): accept
# them on the model's page, and log in with: hf auth login
_base_ = '../detection/dino-4scale_convnext-t_8xb2-12e_coco.py'

checkpoint = 'hf://facebook/dinov3-convnext-tiny-pretrain-lvd1689m'
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
