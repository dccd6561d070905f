"""The parameters and the settings of a fused block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The parameters that a block may not have.
OPTIONAL = ('layer_scale', 'grn_weight', 'grn_bias')


class BlockParameters(NamedTuple):
    """The parameters of a block, as a :class:`convnext_backbone.ConvNextLayer` stores them.

    Attributes:
        depthwise_weight: ``(C, 1, 7, 7)``.
        depthwise_bias: ``(C,)``.
        norm_weight: ``(C,)``.
        norm_bias: ``(C,)``.
        weight1: ``(4C, C)``.
        bias1: ``(4C,)``.
        weight2: ``(C, 4C)``.
        bias2: ``(C,)``.
        layer_scale: ``(C,)``, or None for a block without layer scale.
        grn_weight: ``(1, 1, 1, 4C)``, or None for a block without GRN.
        grn_bias: As ``grn_weight``.
    """

    depthwise_weight: Tensor
    depthwise_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    layer_scale: Tensor | None
    grn_weight: Tensor | None
    grn_bias: Tensor | None

    def misfit(self, dim: int) -> str | None:
        """Describes the first parameter that does not fit ``dim`` channels, or returns None."""
        vector, hidden = (dim,), (1, 1, 1, 4 * dim)
        shapes = dict(
            depthwise_weight=(dim, 1, 7, 7),
            weight1=(4 * dim, dim),
            bias1=(4 * dim,),
            weight2=(dim, 4 * dim),
            grn_weight=hidden,
            grn_bias=hidden,
        )
        for name, tensor in zip(BlockParameters._fields, self, strict=True):
            shape = shapes.get(name, vector)
            if tensor is None and name in OPTIONAL:
                continue
            if tensor is None or tensor.shape != shape:
                found = 'missing' if tensor is None else f'of shape {tuple(tensor.shape)}'
                return f'for {dim} channels, their {name} must be of shape {shape} and is {found}'
        return None


class BlockSettings(NamedTuple):
    """How a block is computed.

    Attributes:
        dtype: Dtype of the matrix products.
        output_dtype: Dtype of the block's output.
        norm_eps: Added to the variance by the norm.
        grn_eps: Added to the mean norm by GRN; unused without GRN.
        lean: Whether the backward pass recomputes the pre-activations instead of keeping them.
    """

    dtype: torch.dtype
    output_dtype: torch.dtype
    norm_eps: float
    grn_eps: float
    lean: bool
