# The same with a frozen backbone: only the norms of its maps and the head are trained.
# A suggestion: nothing is published for it, and it was not trained here. The frozen stages keep no
# activations. The weights have their own terms (DINOv3 License).
_base_ = './mask2former_convnext-t-dinov3_8xb2-lsj-50e_coco.py'

model = dict(backbone=dict(frozen_stages=4))
