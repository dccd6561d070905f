"""The inverted bottleneck with a global response normalisation (ConvNeXt V2, section 4): linear,
GELU, GRN, linear.

GRN turns the hidden ``h`` into ``h * scale + bias`` with a scale for each sample and channel,
``1 + weight * n / (mean(n) + eps)``, where ``n`` is the norm of a sample's channel over its pixels.
So samples are taken one by one. The functions have the arguments of those of :mod:`mlp`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import linear, weight_grad
from .mlp import parts_of
from .parameters import BlockParameters, BlockSettings, RunningSum


class Response:
    """The norms of one sample's hidden channels and the scale that follows from them."""

    def __init__(
        self, kernels: ModuleType, settings: BlockSettings, p: BlockParameters, hidden: list[Tensor]
    ) -> None:
        squares = RunningSum()
        for h in hidden:
            squares.add(kernels.column_products(h, h))
        self.norm = squares.total.sqrt()
        self.mean = self.norm.mean() + settings.grn_eps
        self.ratio = self.norm / self.mean
        self.weight = p.grn_weight.flatten()
        self.scale = 1 + self.weight * self.ratio
        self.bias = p.grn_bias.flatten()

    def rescale(self, hidden: Tensor) -> Tensor:
        """What the GRN makes of the hidden."""
        return torch.addcmul(self.bias.to(hidden.dtype), hidden, self.scale.to(hidden.dtype))

    def shift(self, products: Tensor) -> Tensor:
        """The hidden's gradient by way of the norms, divided by the hidden itself, ``(4C,)``.

        Args:
            products: The hidden times the gradient by the GRN's output, summed over pixels.
        """
        grad_ratio = self.weight * products
        grad_norm = (grad_ratio - (grad_ratio * self.ratio).mean()) / self.mean
        return torch.where(self.norm > 0, grad_norm / self.norm, 0)


def forward(
    kernels: ModuleType,
    settings: BlockSettings,
    p: BlockParameters,
    normed: Tensor,
    num_samples: int,
    save: bool,
    finish: Callable[[slice, Tensor], None],
) -> list[Tensor]:
    """As :func:`mlp.forward`."""
    saved = []
    for parts in _samples(normed, num_samples):
        hidden = []
        for part in parts:
            if save:
                saved.append(linear(normed[part], p.weight1, p.bias1))
                hidden.append(F.gelu(saved[-1]))
            else:
                hidden.append(linear(normed[part], p.weight1, p.bias1, gelu=True))
        response = Response(kernels, settings, p, hidden)
        for part, h in zip(parts, hidden, strict=True):
            finish(part, linear(response.rescale(h), p.weight2, p.bias2))
    return saved


def backward(
    kernels: ModuleType,
    settings: BlockSettings,
    p: BlockParameters,
    needs: BlockParameters,
    normed: Tensor,
    num_samples: int,
    saved: list[Tensor],
    grad: Tensor,
    receive: Callable[[slice, Tensor], None],
) -> dict[str, RunningSum]:
    """As :func:`mlp.backward`; the gradients of the GRN's parameters are among those returned."""
    names = ('weight1', 'bias1', 'weight2', 'grn_weight', 'grn_bias')
    sums = {name: RunningSum() for name in names}
    saved = list(saved)
    for parts in _samples(normed, num_samples):
        inner = [saved.pop(0) if saved else linear(normed[i], p.weight1, p.bias1) for i in parts]
        hidden = [F.gelu(i) for i in inner]
        response = Response(kernels, settings, p, hidden)
        products, grads = RunningSum(), []
        for part, h in zip(parts, hidden, strict=True):
            grads.append(linear(grad[part], p.weight2.t()))
            products.add(kernels.column_products(grads[-1], h))
            sums['grn_bias'].add(grads[-1].sum(0, dtype=products.total.dtype).view_as(p.grn_bias))
            if needs.weight2 or needs.layer_scale:
                sums['weight2'].add(weight_grad(grad[part], response.rescale(h)))
        sums['grn_weight'].add((products.total * response.ratio).view_as(p.grn_weight))
        shift = response.shift(products.total)
        for part, i, grad_inner in zip(parts, inner, grads, strict=True):
            _, grad_bias = kernels.gelu_backward_(grad_inner, i, response.scale, shift)
            sums['bias1'].add(grad_bias)
            if needs.weight1:
                sums['weight1'].add(weight_grad(grad_inner, normed[part]))
            receive(part, linear(grad_inner, p.weight1.t()))
    return sums


def _samples(normed: Tensor, num_samples: int) -> list[list[slice]]:
    """The parts of each sample's rows."""
    size = len(normed) // num_samples
    starts = range(0, len(normed), size)
    return [list(parts_of(slice(start, start + size), normed)) for start in starts]
