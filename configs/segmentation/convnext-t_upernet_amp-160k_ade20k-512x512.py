# UPerNet, ConvNeXt-T, ADE20K, 160k iterations (ConvNeXt, appendix A.3; official repository).
# Published with ImageNet-1K pre-training: mIoU 46.0 (single scale), 46.7 (multi-scale),
# 60 M parameters, 939 GFLOPs at 2048 x 512.
_base_ = [
    '../_base_/models/upernet_convnext.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw-stage-decay_amp_160k.py',
    'mmseg::_base_/default_runtime.py',
]

crop_size = (512, 512)
checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224_ema.pth'
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),
)

train_dataloader = dict(batch_size=2)  # 8 GPUs x 2 images = 16 a batch
