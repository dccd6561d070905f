"""The inverted bottleneck of a fused block: linear, GELU, in ConvNeXt V2 GRN, linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor

from .grn import Response
from .linear import linear, weight_grad
from .parameters import BlockParameters, BlockSettings, RunningSum

# Hidden activations are made in parts of about this size in bytes, which processors' caches hold.
PART_BYTES = 2**22


class Mlp:
    """Both passes over the rows of a map, in parts.

    Args:
        kernels: The compiled kernels or :mod:`portable`.
        settings: How the block is run.
        p: The parameters, the linear ones in ``settings.dtype``.
        normed: What the norm returns, ``(rows, C)``.
        num_samples: Number of images whose pixels the rows are.
    """

    def __init__(
        self,
        kernels: ModuleType,
        settings: BlockSettings,
        p: BlockParameters,
        normed: Tensor,
        num_samples: int,
    ) -> None:
        self.kernels, self.settings, self.p, self.normed = kernels, settings, p, normed
        self.sample_rows = len(normed) // num_samples

    def forward(self, save: bool, finish: Callable[[slice, Tensor], None]) -> list[Tensor]:
        """Hands the branch to ``finish`` by parts: their rows and ``(part, C)``.

        Returns:
            With ``save``, the pre-activations by parts.
        """
        p, saved = self.p, []
        for part in self._parts():
            if save:
                saved.append(self._inner(part))
                hidden = F.gelu(saved[-1])
            else:
                hidden = linear(self.normed[part], p.weight1, p.bias1, gelu=True)
            if p.grn_weight is not None:
                hidden = self._respond(hidden).rescaled()
            finish(part, linear(hidden, p.weight2, p.bias2))
        return saved

    def backward(
        self,
        grad: Tensor,
        saved: list[Tensor],
        needs: BlockParameters,
        receive: Callable[[slice, Tensor], None],
    ) -> dict[str, Tensor | None]:
        """Hands the gradient by ``normed`` to ``receive`` by parts: their rows and ``(part, C)``.

        Args:
            grad: The gradient by the branch, ``(rows, C)``.
            saved: What :meth:`forward` returned; pre-activations that are not there are computed.
            needs: Whether each parameter needs a gradient.
            receive: Takes the parts.

        Returns:
            The gradients of the parameters but for ``bias2``.
        """
        p = self.p
        sums = {name: RunningSum() for name in ('weight1', 'bias1', 'weight2')}
        sums |= {name: RunningSum() for name in ('grn_weight', 'grn_bias')}
        for i, part in enumerate(self._parts()):
            inner = saved[i] if saved else self._inner(part)
            grad_inner = linear(grad[part], p.weight2.t())
            scale = shift = None
            if p.grn_weight is not None:
                response = self._respond(F.gelu(inner))
                grad_weight, grad_bias, shift = response.gradients(grad_inner)
                sums['grn_weight'].add(grad_weight)
                sums['grn_bias'].add(grad_bias)
                scale = response.scale
            hidden, grad_inner, grad_bias1 = self.kernels.gelu_backward_(
                grad_inner, inner, scale, shift
            )
            sums['bias1'].add(grad_bias1)
            if needs.weight2 or needs.layer_scale:
                last = hidden if p.grn_weight is None else response.rescaled()
                sums['weight2'].add(weight_grad(grad[part], last))
            if needs.weight1:
                sums['weight1'].add(weight_grad(grad_inner, self.normed[part]))
            receive(part, linear(grad_inner, p.weight1.t()))
        return {name: total.value for name, total in sums.items()}

    def _inner(self, part: slice) -> Tensor:
        """The pre-activations."""
        return linear(self.normed[part], self.p.weight1, self.p.bias1)

    def _respond(self, hidden: Tensor) -> Response:
        num_samples = len(hidden) // self.sample_rows
        return Response(self.kernels, self.p, self.settings.grn_eps, hidden, num_samples)

    def _parts(self) -> Iterator[slice]:
        """Rows whose hidden activations, four times as wide, have about the wanted size.

        With GRN, parts hold whole samples.
        """
        rows, parts = len(self.normed), 1
        if self.normed.device.type == 'cpu':
            parts = -(-4 * self.normed.nbytes // PART_BYTES)
        unit = 1 if self.p.grn_weight is None else self.sample_rows
        step = -(-rows // (parts * unit)) * unit
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))
