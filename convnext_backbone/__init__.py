"""ConvNeXt as a backbone plugin for OpenMMLab frameworks.

Importing the package registers ``ConvNextBackbone`` in mmengine's root ``MODELS`` registry.
"""

from .backbone import ConvNextBackbone
from .encoder import ConvNextEncoder, ConvNextStage
from .layers import (
    ConvNextDropPath,
    ConvNextEmbeddings,
    ConvNextGRN,
    ConvNextLayer,
    ConvNextLayerNorm,
    drop_path,
)
from .safe_globals import allow_mmengine_checkpoints

__version__ = '0.1.0'

__all__ = [
    'ConvNextBackbone',
    'ConvNextDropPath',
    'ConvNextEmbeddings',
    'ConvNextEncoder',
    'ConvNextGRN',
    'ConvNextLayer',
    'ConvNextLayerNorm',
    'ConvNextStage',
    'drop_path',
]

allow_mmengine_checkpoints()
