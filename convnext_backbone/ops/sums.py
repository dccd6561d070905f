"""Sums in a dtype that is wide enough for them."""

from __future__ import annotations

import torch
from torch import Tensor

from .onednn import has_bfloat16


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float32 for half precision, else ``dtype`` itself."""
    return torch.promote_types(dtype, torch.float32)


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of products and convolutions of tensors of ``dtype``.

    On a CPU, it is float32 for float16 and, if the processor does not support it, for bfloat16:
    there, torch needs 6 to 300 times as long in half precision.
    """
    if device.type != 'cpu' or dtype.itemsize > 2:
        return dtype
    return dtype if dtype == torch.bfloat16 and has_bfloat16() else torch.float32


class RunningSum:
    """A sum of tensors. It is in the wide dtype from the second tensor on.

    Attributes:
        value: The sum so far; None before the first tensor.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Adds a tensor. The caller must not use it afterwards."""
        if self.value is None:
            self.value = term
        else:
            self.value = self.value.to(wide(term.dtype)).add_(term)

    def total(self) -> Tensor:
        """Returns the sum.

        Raises:
            ValueError: If no tensor was added.
        """
        if self.value is None:
            raise ValueError('the sum has no tensors: call add() before total()')
        return self.value
