# ConvNeXt-B, ImageNet-1K from scratch at 224 x 224 (ConvNeXt, tables 1 and 5).
# Published: top-1 accuracy 83.8 %, 89 M parameters, 15.4 GFLOPs.
_base_ = '../_base_/convnext_in1k.py'

model = dict(arch='base', drop_path_rate=0.5)
