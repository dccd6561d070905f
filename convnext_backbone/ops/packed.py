"""Linear layers for inference alone: weights are converted and packed once for the processor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class PackedLinear:
    """A linear layer that never changes.

    Args:
        weight: ``(out, in)``, in any dtype.
        bias: ``(out,)``.
        dtype: Dtype of the product.
        gelu: Whether GELU follows. Default: False.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype, gelu: bool = False
    ) -> None:
        self.weight = weight.to(dtype, copy=True).contiguous()
        self.bias = bias.to(dtype, copy=True)
        self.gelu = gelu
        self.is_packed = _can_pack(self.weight)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, rows: Tensor) -> Tensor:
        """Computes ``(rows, out)`` from ``(rows, in)``."""
        if not self.is_packed:
            product = F.linear(rows, self.weight, self.bias)
            return F.gelu(product) if self.gelu else product
        activation, algorithm = ('gelu', 'none') if self.gelu else ('none', '')
        return torch.ops.mkldnn._linear_pointwise(
            rows, self.weight, self.bias, activation, [], algorithm
        )


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN computes the product, as in :mod:`convnext_backbone.ops.linear`."""
    if weight.device.type != 'cpu' or not torch.backends.mkldnn.enabled:
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
