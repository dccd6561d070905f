"""Global response normalisation (ConvNeXt V2, section 4) between the two linear layers.

It turns the hidden activation ``h`` into ``h * scale + bias``. Each sample and channel has one
scale, ``1 + weight * n / (mean(n) + eps)``, where ``n`` is the L2 norm of the channel over the
sample's pixels.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .scaling import HIDDEN_LIMIT, power_of_two


class Response:
    """The norms of the hidden channels of some samples, and the scales computed from them.

    Args:
        kernels: The compiled kernels or :mod:`portable`.
        weight: GRN's weight, ``(4C,)``.
        bias: GRN's bias, ``(4C,)``.
        eps: Added to the mean of the norms.
        hidden: The hidden rows of the samples, sample after sample, ``(rows, 4C)``.
        num_samples: Number of samples, S.

    Attributes:
        scale: The scales, ``(S, 4C)``.
    """

    def __init__(
        self,
        kernels: ModuleType,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        hidden: Tensor,
        num_samples: int,
    ) -> None:
        self.kernels, self.hidden = kernels, hidden
        self.weight, self.bias = weight, bias
        self.norm = kernels.column_products(hidden, hidden, num_samples).sqrt()
        self.mean = self.norm.mean(1, keepdim=True) + eps
        self.ratio = self.norm / self.mean
        self.scale = 1 + self.weight * self.ratio

    def rescaled(self) -> Tensor:
        """Returns the output of GRN for the hidden rows."""
        dtype = self.hidden.dtype
        samples = self.hidden.view(len(self.scale), -1, self.hidden.shape[1])
        if dtype == torch.float16 or samples.is_cuda:
            # Scales in float16 can overflow where their products do not.
            scaled = torch.empty_like(samples)
            torch.addcmul(self.bias, samples, self.scale[:, None], out=scaled)
        else:  # with several dtypes, the operator is ten times as slow on a CPU
            scaled = torch.addcmul(self.bias.to(dtype), samples, self.scale.to(dtype)[:, None])
        return scaled.view_as(self.hidden)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes gradients from the gradient with respect to the rescaled rows.

        Returns:
            The gradients with respect to GRN's weight and bias, and a ``shift`` ``(S, 4C)``. The
            gradient with respect to the hidden rows is ``grad * scale + hidden * shift``; the
            second term comes from the norms.
        """
        products = self.kernels.column_products(grad, self.hidden, len(self.scale))
        grad_ratio = self.weight * products
        grad_norm = grad_ratio - (grad_ratio * self.ratio).mean(1, keepdim=True)
        # A norm of zero has the gradient zero, but not if grad_norm is not finite.
        shift = grad_norm / torch.where(self.norm == 0, torch.inf, self.mean * self.norm)
        grad_weight = (products * self.ratio).sum(0)
        return grad_weight, grad.sum(0, dtype=products.dtype), shift

    def power(self, shift: Tensor) -> Tensor:
        """Returns the power of two that ``scale`` and ``shift`` are multiplied by in float16.

        With it, ``grad * scale + hidden * shift`` is in range if ``grad`` is.
        """
        peaks = HIDDEN_LIMIT * self.scale.abs() + self.norm * shift.abs()
        return power_of_two(peaks, HIDDEN_LIMIT)
