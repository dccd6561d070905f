"""Converts tensors between the layouts of the sources and the layout of this package.

Every conversion is exact. It adds or removes axes of size 1, or reorders the axes of a sparse
kernel. A tensor in any other layout is returned unchanged; the audit finds that it does not fit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .formats import Format
from .names import Name

_GRN = ('grn_weight', 'grn_bias')
_OVERLAP_CONVS = ('overlap_conv1', 'overlap_conv2', 'overlap_act_conv2')
_CONVS = ('stem_conv', *_OVERLAP_CONVS, 'down_conv', 'dwconv')


def is_plain(dtype: torch.dtype) -> bool:
    """Whether a dtype holds numbers as they are. Those of 8 bits and fewer need a scale."""
    return dtype.is_floating_point and dtype.itemsize > 1


def to_native(name: Name, tensor: Tensor) -> Tensor:
    """Converts a tensor to the layout of this package.

    Args:
        name: The place of the tensor in the model.
        tensor: The weight of a linear layer may be a 1x1 convolution, ``(O, I, 1, 1)``. A vector,
            also of GRN, may be ``(C,)``, ``(C, 1, 1)``, ``(1, C)`` or ``(1, 1, 1, C)``. A sparse
            kernel is ``(K * K, I, O)``, or ``(K * K, C)`` for a depthwise convolution.

    Returns:
        ``(O, I)``, ``(C,)`` (GRN ``(1, 1, 1, C)``), ``(O, I, K, K)`` and ``(C, 1, K, K)``; a tensor
        of any other shape unchanged.
    """
    if tensor.layout != torch.strided:
        return tensor
    if name.leaf == 'kernel':
        return _to_dense_kernel(tensor)
    shape, size = tuple(tensor.shape), tensor.numel()
    if name.leaf == 'weight' and name.part in _CONVS:
        return tensor
    if name.leaf == 'weight' and name.part in ('pwconv1', 'pwconv2', 'head'):
        is_conv = tensor.ndim == 4 and shape[2:] == (1, 1)
        return tensor.reshape(shape[:2]) if is_conv else tensor
    if shape not in ((size,), (size, 1, 1), (1, size), (1, 1, 1, size)):
        return tensor
    return tensor.reshape((1, 1, 1, size) if name.part in _GRN else size)


def from_native(name: Name, tensor: Tensor, target: Format) -> Tensor:
    """Converts a tensor from the layout of this package to the layout of a format."""
    return tensor.reshape(-1) if name.part in _GRN and target.flat_grn else tensor


def is_convolution(name: Name, tensor: Tensor) -> bool:
    """Whether a tensor in native layout can be the weight of a convolution at its place."""
    return is_depthwise(tensor) if name.part == 'dwconv' else tensor.ndim == 4


def is_depthwise(tensor: Tensor) -> bool:
    """Whether a tensor in native layout is the weight of a depthwise convolution."""
    return tensor.ndim == 4 and tensor.shape[1] == 1 and tensor.shape[2] == tensor.shape[3] > 1


def _to_dense_kernel(kernel: Tensor) -> Tensor:
    if kernel.ndim not in (2, 3):
        return kernel
    side = math.isqrt(len(kernel))
    if side * side != len(kernel):
        return kernel
    if kernel.ndim == 2:
        kernel = kernel[:, None]
    # (K * K, I, O) to (O, I, K, K); positions are in column-major order.
    return kernel.permute(2, 1, 0).reshape(*kernel.shape[:0:-1], side, side).transpose(2, 3)
