# Faster R-CNN, ConvNeXt-T, images of four channels, such as RGB and infrared in one PNG or TIFF.
# A suggestion for a dataset of yours, not trained here: set the paths, the classes and the fourth
# mean and standard deviation. The stem's weights for red, green and blue are tiled over the four
# channels and scaled.
_base_ = '../detection/faster-rcnn_convnext-t_fpn_amp-1x_coco.py'

# OpenCV reads blue, green, red, and the fourth channel; mmengine's preprocessor normalises only one
# or three channels. The transform does not reorder channels.
load = dict(type='LoadImageFromFile', color_type='unchanged')
normalize = dict(
    type='Normalize',
    mean=[103.53, 116.28, 123.675, 110.0],
    std=[57.375, 57.12, 58.395, 57.0],
    to_rgb=False,
)
train_pipeline = [
    load,
    *_base_.train_pipeline[1:-1],
    normalize,
    _base_.train_pipeline[-1],
]
test_pipeline = [
    load,
    *_base_.test_pipeline[1:-1],
    normalize,
    _base_.test_pipeline[-1],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(num_channels=4, adapt_stem=True),
)
