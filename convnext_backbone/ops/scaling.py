"""How the layer scale enters the backward pass, and how float16 gradients stay in range.

The gradient with respect to the hidden activation is ``(grad * layer_scale) @ weight2``. In half
precision, the layer scale is split into mantissas and powers of two: the gradient is multiplied by
the mantissas, the weight by the powers. So only ``grad * mantissa`` is rounded, with an error that
differs from row to row, and sums over the rows are accurate. Without its power, the gradient also
serves for the gradient with respect to the layer scale, however small the scale is. In wider dtypes
the weight is multiplied by the whole scale.

float16 ends at 65504, and below 6e-5 it loses digits. In a chain of modules, most gradients of a
block with a layer scale of 1e-6 become zero, and under a loss scale of 65536 others become
infinite. Here, gradient and weight are multiplied by another power of two each, and results are
divided by it in float32. These powers follow from upper bounds of all products, so nothing
overflows that does not in float32. They are tensors on the device: nothing waits for their values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .parameters import BlockParameters

# Bounds of float16 gradients, of the sums over the columns of the second weight, and so of the
# hidden gradient. The derivative of GELU is below 1.13.
GRAD_LIMIT, WEIGHT_LIMIT = 2.0**7, 2.0**8
HIDDEN_LIMIT = GRAD_LIMIT * WEIGHT_LIMIT


class Scaling(NamedTuple):
    """The factors in the backward pass of a block.

    Attributes:
        mantissa: In half precision, the mantissas of the layer scale, ``(C,)``; otherwise and
            without layer scale, None for ones. They are 1 where the scale is zero or not finite.
        power: The layer scale divided by ``mantissa``; None without layer scale.
        weight2: The second weight times ``power`` and, in float16, another power of two.
        grad: What the gradient is multiplied by, ``(C,)``: ``mantissa`` times ``grad_power``; None
            for ones.
        grad_power: The power of two in the gradient; only in float16, otherwise None.
        hidden_power: ``grad_power`` times that of ``weight2``, the power of two in the hidden
            gradient; only in float16, otherwise None. It is infinite, and what follows from that
            gradient is zero, where its largest values are about 1e-36 or less.
    """

    mantissa: Tensor | None
    power: Tensor | None
    weight2: Tensor
    grad: Tensor | None
    grad_power: Tensor | None = None
    hidden_power: Tensor | None = None


def choose_scaling(
    grad_output: Tensor, keep: Tensor | None, p: BlockParameters, dtype: torch.dtype
) -> Scaling:
    """Chooses the factors from the gradient and the parameters.

    Args:
        grad_output: The gradient with respect to the block's output, ``(N, H, W, C)``.
        keep: The factors of drop path, ``(N,)``, or None.
        p: The parameters; ``weight2`` is in ``dtype`` or wider.
        dtype: Dtype of the matrix products.
    """
    mantissa, power, weight2 = None, p.layer_scale, p.weight2
    if power is not None:
        if dtype.itemsize == 2:
            mantissa = torch.frexp(power)[0].nan_to_num(nan=1, posinf=1, neginf=1)
            mantissa = torch.where(mantissa == 0, 1, mantissa)
            power = power / mantissa
        weight2 = weight2 * power[:, None]
    if dtype != torch.float16:
        return Scaling(mantissa, power, weight2.to(dtype), mantissa)
    weight2 = weight2.float()
    weight_power = power_of_two(torch.linalg.vector_norm(weight2, 1, dim=0), WEIGHT_LIMIT)
    peaks = torch.linalg.vector_norm(grad_output, torch.inf, dim=(1, 2)).float()
    if keep is not None:
        peaks = peaks * keep[:, None]
    grad_power = power_of_two(peaks, GRAD_LIMIT)
    return Scaling(
        mantissa,
        power,
        (weight2 * weight_power).to(dtype),
        grad_power.repeat(grad_output.shape[-1]) if mantissa is None else mantissa * grad_power,
        grad_power,
        grad_power * weight_power,
    )


def power_of_two(peaks: Tensor, limit: float) -> Tensor:
    """Returns the power of two that brings the largest peak to between ``limit / 2`` and ``limit``.

    Args:
        peaks: Absolute values in float32, of any shape. Those that are not finite do not count:
            what is not finite stays so under any factor, and the overflow shows.
        limit: A power of two.

    Returns:
        A scalar in float32. It is 1 if all peaks are zero or do not count.
    """
    peak = peaks.nan_to_num(nan=0, posinf=0).amax()
    mantissa, _ = torch.frexp(peak)
    factor = limit * (mantissa / peak)  # the quotient is a power of two
    return factor.nan_to_num(nan=1).clamp(2.0**-126, 2.0**126)


def undone(result: Tensor, factor: Tensor | None) -> Tensor:
    """Returns a float32 result divided by the factor in it; None stands for 1."""
    return result if factor is None else result / factor
