# ConvNeXt-T, ImageNet-1K from scratch at 224 x 224 (ConvNeXt, tables 1 and 5).
# Published: top-1 accuracy 82.1 %, 28.6 M parameters, 4.5 GFLOPs.
_base_ = '../_base_/convnext_in1k.py'

model = dict(arch='tiny', drop_path_rate=0.1)
