"""A ConvNeXt block, and the norm of a feature map, as single functions of tensors.

They take tensors and return tensors, with gradients, and know nothing of modules. They need less
memory in training and less time than the same operations one by one. Feature maps have the shape
``(N, H, W, C)`` here and are contiguous.
"""

from .block import fused_block
from .native import have_compiled_kernels, kernels_title
from .norm import fused_norm
from .parameters import BlockParameters, BlockSettings

__all__ = [
    'BlockParameters',
    'BlockSettings',
    'fused_block',
    'fused_norm',
    'have_compiled_kernels',
    'kernels_title',
]
