"""The inverted bottleneck of a fused block: linear, GELU, linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor

from .linear import linear, weight_grad
from .parameters import BlockParameters, BlockSettings, RunningSum

# Hidden activations are made in parts of this size in bytes, which fit a processor's caches.
PART_BYTES = 2**22


def parts_of(rows: slice, like: Tensor) -> Iterator[slice]:
    """Cuts ``rows`` of ``like`` into parts whose hidden activations, four times as wide, fit."""
    count, parts = rows.stop - rows.start, 1
    if like.device.type == 'cpu':
        parts = -(-count * 4 * like.shape[1] * like.itemsize // PART_BYTES)
    step = -(-count // parts)
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def forward(
    kernels: ModuleType,
    settings: BlockSettings,
    p: BlockParameters,
    normed: Tensor,
    num_samples: int,
    save: bool,
    finish: Callable[[slice, Tensor], None],
) -> list[Tensor]:
    """Hands the branch to ``finish`` in parts.

    Args:
        kernels: The compiled kernels or :mod:`portable`.
        settings: How the block is run.
        p: The parameters, the linear ones in ``settings.dtype``.
        normed: What the norm returns, ``(rows, C)``.
        num_samples: Number of images whose pixels the rows are.
        save: Whether pre-activations are returned.
        finish: Takes rows and their branch, ``(part, C)``.

    Returns:
        The pre-activations by parts, or nothing.
    """
    saved = []
    for part in parts_of(slice(0, len(normed)), normed):
        if save:
            saved.append(linear(normed[part], p.weight1, p.bias1))
            hidden = F.gelu(saved[-1])
        else:
            hidden = linear(normed[part], p.weight1, p.bias1, gelu=True)
        finish(part, linear(hidden, p.weight2, p.bias2))
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
    """Hands the gradient by ``normed`` to ``receive`` in parts.

    Args:
        kernels: The compiled kernels or :mod:`portable`.
        settings: How the block is run.
        p: The parameters, the linear ones in ``settings.dtype``.
        needs: Whether each parameter needs a gradient.
        normed: What the norm returns, ``(rows, C)``.
        num_samples: Number of images whose pixels the rows are.
        saved: What :func:`forward` returned; without any, pre-activations are computed again.
        grad: The gradient by the branch, ``(rows, C)``.
        receive: Takes rows and their gradient, ``(part, C)``.

    Returns:
        The gradients of ``weight1``, ``bias1`` and ``weight2``.
    """
    sums = {name: RunningSum() for name in ('weight1', 'bias1', 'weight2')}
    for i, part in enumerate(parts_of(slice(0, len(normed)), normed)):
        inner = saved[i] if saved else linear(normed[part], p.weight1, p.bias1)
        grad_inner = linear(grad[part], p.weight2.t())
        hidden, grad_bias = kernels.gelu_backward_(grad_inner, inner, None, None)
        sums['bias1'].add(grad_bias)
        if needs.weight2 or needs.layer_scale:
            sums['weight2'].add(weight_grad(grad[part], hidden))
        if needs.weight1:
            sums['weight1'].add(weight_grad(grad_inner, normed[part]))
        receive(part, linear(grad_inner, p.weight1.t()))
    return sums
