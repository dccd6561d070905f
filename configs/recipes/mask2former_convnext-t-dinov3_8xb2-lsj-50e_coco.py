# Mask2Former, instance segmentation, on a DINOv3-trained ConvNeXt-T, all layers tuned; COCO, 50
# epochs. A suggestion: nothing is published for it, and it was not trained here. Small learning
# rates near the stem keep what DINOv3 has learned.
# The weights have their own terms (DINOv3 License): accept them on the model's page, and log in
# with: hf auth login
_base_ = '../detection/mask2former_convnext-t_8xb2-lsj-50e_coco.py'

checkpoint = 'hf://facebook/dinov3-convnext-tiny-pretrain-lvd1689m'
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
