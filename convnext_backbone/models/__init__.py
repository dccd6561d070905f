"""The models: blocks, encoder, backbone, pooled model, image classifier."""

from .backbone import ConvNextBackbone, ConvNextBackboneOutput
from .base import ConvNextBase
from .blocks import ConvNextLayer
from .classifier import ConvNextForImageClassification
from .drop_path import ConvNextDropPath, drop_path
from .embeddings import ConvNextEmbeddings
from .encoder import ConvNextEncoder, ConvNextStage
from .model import ConvNextModel, ConvNextModelOutput
from .norms import ConvNextGRN, ConvNextLayerNorm

__all__ = [
    'ConvNextBackbone',
    'ConvNextBackboneOutput',
    'ConvNextBase',
    'ConvNextDropPath',
    'ConvNextEmbeddings',
    'ConvNextEncoder',
    'ConvNextForImageClassification',
    'ConvNextGRN',
    'ConvNextLayer',
    'ConvNextLayerNorm',
    'ConvNextModel',
    'ConvNextModelOutput',
    'ConvNextStage',
    'drop_path',
]
