"""Linear layers for inference alone: weights are converted and packed once for the processor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .onednn import has_products_for
from .sums import computed_in


class PackedLinear:
    """A linear layer that never changes.

    Args:
        weight: ``(out, in)``, in any dtype.
        bias: ``(out,)``.
        dtype: Dtype of weights and result. Processors without products in it compute in float32.
        gelu: Whether GELU follows. Default: False.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype, gelu: bool = False
    ) -> None:
        self.product_dtype = computed_in(dtype, weight.device)
        self.weight = weight.to(dtype, copy=True).contiguous().to(self.product_dtype)
        self.bias = bias.to(dtype, copy=True).to(self.product_dtype)
        self.gelu = gelu
        self.is_packed = has_products_for(self.weight)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, rows: Tensor) -> Tensor:
        """Computes ``(rows, out)`` from ``(rows, in)``."""
        inputs = rows.to(self.product_dtype)
        if self.is_packed:
            activation, algorithm = ('gelu', 'none') if self.gelu else ('none', '')
            product = torch.ops.mkldnn._linear_pointwise(
                inputs, self.weight, self.bias, activation, [], algorithm
            )
        else:
            product = F.linear(inputs, self.weight, self.bias)
            product = F.gelu(product) if self.gelu else product
        return product.to(rows.dtype)
