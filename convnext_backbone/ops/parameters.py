"""What a fused block is made of, and the sums its gradients are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockParameters(NamedTuple):
    """The tensors of a :class:`ConvNextLayer`, or one thing for each of them."""

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


class BlockSettings(NamedTuple):
    """How a block is run.

    Attributes:
        dtype: That of the matrix products.
        output_dtype: That of the block's output.
        norm_eps: Added to the variance by the norm.
        grn_eps: Added to the mean norm by the GRN; not used without one.
        lean: Whether the backward pass computes the pre-activations again instead of keeping them.
    """

    dtype: torch.dtype
    output_dtype: torch.dtype
    norm_eps: float
    grn_eps: float
    lean: bool


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics and sums: float32 for half precision, else ``dtype`` itself."""
    return torch.promote_types(dtype, torch.float32)


class RunningSum:
    """A sum of tensors, in the wide type from the second one on; ``value`` is None without any."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Adds a tensor, which must not be used any more."""
        if self.value is None:
            self.value = term
        else:
            self.value = self.value.to(wide(term.dtype)).add_(term)
