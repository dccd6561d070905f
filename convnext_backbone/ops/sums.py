"""Sums in a dtype that is wide enough for them."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float32 for half precision, else ``dtype`` itself."""
    return torch.promote_types(dtype, torch.float32)


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic on tensors of ``dtype``: float32 for float16 on a CPU.

    Few processors compute in float16. On the others, torch needs 10 to 300 times as long as in
    float32.
    """
    return torch.float32 if dtype == torch.float16 and device.type == 'cpu' else dtype


def unlimited(dtype: torch.dtype) -> torch.dtype:
    """The dtype of gradients that are not scaled: float32 for float16, whose range is too small."""
    return torch.float32 if dtype == torch.float16 else dtype


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
