"""What classifiers are trained with: data, mixing of images, and the accuracy.

Importing it registers all of it in mmengine's root registries and needs mmcv; in a config,
``custom_imports = dict(imports=['convnext_backbone.classification'])``.
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
