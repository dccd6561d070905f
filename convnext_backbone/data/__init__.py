"""Data for the training of classifiers: dataset, transforms, mixing of images, accuracy.

Importing this package registers everything in mmengine's root registries, and needs mmcv. In a
config: ``custom_imports = dict(imports=['convnext_backbone.data'])``. The registry names start with
``ConvNext``, such as ``ConvNextImageFolder``, so they differ from the names in mmdet and
mmpretrain. Only ``MixingDataPreprocessor`` keeps its class name.
"""

from .accuracy import Accuracy
from .image_folder import ImageFolder
from .mixing import MixingDataPreprocessor
from .transforms import PackInputs, RandomErasing, RandomResizedCrop

__all__ = [
    'Accuracy',
    'ImageFolder',
    'MixingDataPreprocessor',
    'PackInputs',
    'RandomErasing',
    'RandomResizedCrop',
]
