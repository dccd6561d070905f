"""Fake versions of the compiled operators: only shapes, dtypes and devices of the outputs.

torch calls these under ``FakeTensorMode``, in ``torch.compile`` and ``torch.export``, and for
tensors on the meta device.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def register() -> None:
    """Registers a fake of every operator, once. The library must be loaded."""
    for fake in FAKES:
        torch.library.register_fake(f'convnext_backbone::{fake.__name__}', fake)


def depthwise_norm(
    features: Tensor,
    taps: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    convolved = taps.new_empty(features.shape if keep else 0)
    return features.new_empty(features.shape, dtype=dtype), convolved


def depthwise_input_grad(grad: Tensor, taps: Tensor, grad_output: Tensor) -> Tensor:
    return torch.empty_like(grad_output)


def depthwise_weight_grad(features: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(49, features.shape[-1])


def norm(
    features: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_first: bool
) -> Tensor:
    batch, height, width, channels = features.shape
    if channels_first:
        return features.new_empty(batch, channels, height, width)
    return torch.empty_like(features)


def norm_backward_(features: Tensor, grad: Tensor, norm_weight: Tensor, eps: float) -> Tensor:
    return features.new_empty(3, features.shape[-1])


def gelu_backward_(
    grad: Tensor, inner: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inner), _sums(inner, inner.shape[-1])


def add_branch_(
    output: Tensor, features: Tensor, branch: Tensor, scale: Tensor | None, keep: Tensor | None
) -> None:
    return None


def branch_grad(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad, dtype=dtype), _sums(grad, grad.shape[-1])


def row_products(first: Tensor, second: Tensor) -> Tensor:
    return _sums(first, len(first))


def column_products(first: Tensor, second: Tensor, num_samples: int) -> Tensor:
    return _sums(first, num_samples, first.shape[-1])


def _sums(features: Tensor, *shape: int) -> Tensor:
    return features.new_empty(shape, dtype=torch.float32)


FAKES = (
    depthwise_norm,
    depthwise_input_grad,
    depthwise_weight_grad,
    norm,
    norm_backward_,
    gelu_backward_,
    add_branch_,
    branch_grad,
    row_products,
    column_products,
)
