"""A ConvNeXt block and the norm of a feature map as single functions of tensors.

They support gradients and do not depend on modules. They need less time than separate operations,
and less memory in training. Feature maps here have the shape ``(N, H, W, C)`` and are contiguous.
"""

from .block import fused_block
from .choice import PREFERENCES, have_norm_kernels, kernels_title, modules_are_better, pick_kernels
from .library import compiled_block, compiled_norm
from .norm import fused_norm, map_norm
from .parameters import BlockParameters, BlockSettings
from .plain import is_transformed
from .sums import wide
from .tracing import constant_while_traced

__all__ = [
    'PREFERENCES',
    'BlockParameters',
    'BlockSettings',
    'compiled_block',
    'compiled_norm',
    'constant_while_traced',
    'fused_block',
    'fused_norm',
    'have_norm_kernels',
    'is_transformed',
    'kernels_title',
    'map_norm',
    'modules_are_better',
    'pick_kernels',
    'wide',
]
