# SegFormer's all-MLP head, ConvNeXt-T, ADE20K, 160k iterations: UPerNet's recipe, another head.
# No mIoU is published for it with this backbone, and it was not trained here.
_base_ = [
    '../_base_/models/segformer_convnext.py',
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
)
