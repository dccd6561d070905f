"""ConvNeXt as a backbone plugin for OpenMMLab frameworks.

Importing the package registers ``ConvNextBackbone`` in mmengine's root ``MODELS`` registry.
"""

from .backbone import ConvNextBackbone
from .checkpoint import LoadReport, infer_arch, load_checkpoint
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
    'LoadReport',
    'drop_path',
    'infer_arch',
    'load_checkpoint',
]

allow_mmengine_checkpoints()
