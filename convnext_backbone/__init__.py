"""ConvNeXt as a backbone plugin for OpenMMLab frameworks.

Importing the package registers ``ConvNextBackbone``, ``ConvNextModel`` and
``ConvNextForImageClassification`` in mmengine's root ``MODELS`` registry, and
``ConvNextLayerDecayOptimWrapperConstructor`` among its constructors of optimiser wrappers. What
only the training of classifiers needs is registered by importing
``convnext_backbone.classification``.
"""

from .backbone import ConvNextBackbone
from .checkpoint import LoadReport, infer_arch, load_checkpoint
from .classifier import ConvNextForImageClassification
from .encoder import ConvNextEncoder, ConvNextStage
from .fsdp import convnext_auto_wrap_policy
from .layers import (
    ConvNextDropPath,
    ConvNextEmbeddings,
    ConvNextGRN,
    ConvNextLayer,
    ConvNextLayerNorm,
    drop_path,
)
from .lr_decay import ConvNextLayerDecayOptimWrapperConstructor
from .model import ConvNextModel
from .safe_globals import allow_mmengine_checkpoints

__version__ = '0.1.0'

__all__ = [
    'ConvNextBackbone',
    'ConvNextDropPath',
    'ConvNextEmbeddings',
    'ConvNextEncoder',
    'ConvNextForImageClassification',
    'ConvNextGRN',
    'ConvNextLayer',
    'ConvNextLayerDecayOptimWrapperConstructor',
    'ConvNextLayerNorm',
    'ConvNextModel',
    'ConvNextStage',
    'LoadReport',
    'convnext_auto_wrap_policy',
    'drop_path',
    'infer_arch',
    'load_checkpoint',
]

allow_mmengine_checkpoints()
