"""A ConvNeXt block and the norm of a feature map as single functions of tensors.

They support gradients and do not depend on modules. They need less time than separate operations,
and less memory in training. Feature maps here have the shape ``(N, H, W, C)`` and are contiguous.
"""

from .block import fused_block
from .native import have_compiled_kernels, kernels_title, pick_kernels
from .norm import fused_norm, map_norm
from .parameters import BlockParameters, BlockSettings
from .plain import is_transformed
from .sums import wide

__all__ = [
    'BlockParameters',
    'BlockSettings',
    'fused_block',
    'fused_norm',
    'have_compiled_kernels',
    'is_transformed',
    'kernels_title',
    'map_norm',
    'pick_kernels',
    'wide',
]
