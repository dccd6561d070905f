"""The inverted bottleneck of a fused block: linear, GELU, GRN (only ConvNeXt V2), linear."""

from __future__ import annotations

import functools
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor

from .grn import Response
from .linear import input_grad, linear, weight_grad
from .parameters import BlockParameters, BlockSettings
from .scaling import Scaling, undone
from .sums import RunningSum


class Mlp:
    """The forward and the backward pass over a part of the rows of a feature map.

    Args:
        kernels: The compiled kernels or :mod:`portable`.
        settings: How the block is computed.
        p: The parameters; the first weight is in ``settings.dtype``.
        sample_rows: Number of rows (pixels) of a sample. With GRN, a part has whole samples.

    Attributes:
        sums: The gradients with respect to the parameters except ``bias2``, by name, each as a
            running sum over the parts. That of ``weight2`` is without the power of the layer scale
            (see :class:`Scaling`).
    """

    def __init__(
        self, kernels: ModuleType, settings: BlockSettings, p: BlockParameters, sample_rows: int
    ) -> None:
        self.kernels, self.settings, self.p = kernels, settings, p
        self.sample_rows = sample_rows
        self.grn = None
        if p.grn_weight is not None and p.grn_bias is not None:
            self.grn = p.grn_weight.flatten(), p.grn_bias.flatten()
        names = ('weight1', 'bias1', 'weight2', 'grn_weight', 'grn_bias')
        self.sums = {name: RunningSum() for name in names}

    def inner(self, normed: Tensor) -> Tensor:
        """Returns the pre-activations ``(part, 4C)`` of rows ``(part, C)``."""
        return linear(normed, self.p.weight1, self.p.bias1)

    def branch(self, normed: Tensor, inner: Tensor | None) -> Tensor:
        """Returns the output ``(part, C)`` of both linear layers.

        Args:
            normed: The output of the norm, ``(part, C)``.
            inner: Its pre-activations, or None to compute them together with the GELU.
        """
        p = self.p
        hidden = linear(normed, p.weight1, p.bias1, gelu=True) if inner is None else F.gelu(inner)
        if self.grn is not None:
            hidden = self._respond(hidden, *self.grn).rescaled()
        return linear(hidden, self.weight2, p.bias2)

    @functools.cached_property
    def weight2(self) -> Tensor:
        """The second weight in the dtype of the products, for all parts of a forward pass."""
        return self.p.weight2.to(self.settings.dtype)

    def backward(
        self, grad: Tensor, normed: Tensor, inner: Tensor, scaling: Scaling, needs: set[str]
    ) -> Tensor:
        """Returns the gradient with respect to ``normed`` and adds to :attr:`sums`.

        Args:
            grad: The gradient with respect to the branch times ``scaling.grad``, ``(part, C)``.
            normed: The output of the norm, ``(part, C)``.
            inner: Its pre-activations, ``(part, 4C)``.
            scaling: The factors in ``grad`` and in the second weight.
            needs: Names of the parameters that need a gradient.
        """
        sums = self.sums
        grad_inner = linear(grad, scaling.weight2.t())
        power = scaling.hidden_power
        response = scale = shift = None
        if self.grn is not None:
            response = self._respond(F.gelu(inner), *self.grn)
            grad_weight, grad_bias, shift = response.gradients(grad_inner)
            sums['grn_weight'].add(undone(grad_weight, power))
            sums['grn_bias'].add(undone(grad_bias, power))
            scale = response.scale
            if power is not None:
                response_power = response.power(shift)
                scale, shift = scale * response_power, shift * response_power
                power = power * response_power
        hidden, grad_bias1 = self.kernels.gelu_backward_(grad_inner, inner, scale, shift)
        sums['bias1'].add(undone(grad_bias1, power))
        if needs & {'weight2', 'layer_scale'}:
            last = hidden if response is None else response.rescaled()
            sums['weight2'].add(undone(weight_grad(grad, last), scaling.grad_power))
        if 'weight1' in needs:
            sums['weight1'].add(undone(weight_grad(grad_inner, normed), power))
        return undone(input_grad(grad_inner, self.p.weight1), power)

    def _respond(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Response:
        num_samples = len(hidden) // self.sample_rows
        return Response(self.kernels, weight, bias, self.settings.grn_eps, hidden, num_samples)
