"""Global response normalisation (ConvNeXt V2, section 4) between the two linear layers.

It turns the hidden ``h`` into ``h * scale + bias`` with a scale for each sample and channel,
``1 + weight * n / (mean(n) + eps)``, where ``n`` is the norm of a sample's channel over its pixels.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .parameters import BlockParameters


class Response:
    """The norms of the hidden channels of some samples, and the scales that follow from them.

    Args:
        kernels: The compiled kernels or :mod:`portable`.
        p: The block's parameters.
        eps: Added to the mean of the norms.
        hidden: The samples' hidden rows, one sample behind the other, ``(rows, 4C)``.
        num_samples: Number of samples, S.

    Attributes:
        scale: Of shape ``(S, 4C)``.
    """

    def __init__(
        self, kernels: ModuleType, p: BlockParameters, eps: float, hidden: Tensor, num_samples: int
    ) -> None:
        self.kernels, self.hidden = kernels, hidden
        self.weight, self.bias = p.grn_weight.flatten(), p.grn_bias.flatten()
        self.norm = kernels.column_products(hidden, hidden, num_samples).sqrt()
        self.mean = self.norm.mean(1, keepdim=True) + eps
        self.ratio = self.norm / self.mean
        self.scale = 1 + self.weight * self.ratio

    def rescaled(self) -> Tensor:
        """What GRN makes of the hidden rows."""
        dtype = self.hidden.dtype
        samples = self.hidden.view(len(self.scale), -1, self.hidden.shape[1])
        scaled = torch.addcmul(self.bias.to(dtype), samples, self.scale.to(dtype)[:, None])
        return scaled.view_as(self.hidden)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What follows from the gradient by the rescaled rows.

        Returns:
            The gradients by GRN's weight and bias, and the ``shift`` ``(S, 4C)`` with which the
            gradient by the hidden is ``grad * scale + hidden * shift``: the latter passes through
            the norms.
        """
        products = self.kernels.column_products(grad, self.hidden, len(self.scale))
        grad_ratio = self.weight * products
        grad_norm = grad_ratio - (grad_ratio * self.ratio).mean(1, keepdim=True)
        shift = torch.where(self.norm > 0, grad_norm / (self.mean * self.norm), 0)
        grad_weight = (products * self.ratio).sum(0)
        return grad_weight, grad.sum(0, dtype=products.dtype), shift
