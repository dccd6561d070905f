"""The matrix products of a fused block."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .onednn import has_products_for
from .sums import computed_in


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Computes ``rows @ weight.T + bias``, without autograd.

    Args:
        rows: ``(rows, in)``.
        weight: ``(out, in)``, with any strides.
        bias: ``(out,)``, in any dtype. Default: None.
        gelu: Whether to apply GELU to the result. Default: False.
    """
    if computed_in(rows.dtype, rows.device) != rows.dtype:
        return linear(rows.float(), weight.float(), bias, gelu).to(rows.dtype)
    bias = None if bias is None else bias.to(rows.dtype)
    if _onednn_takes(rows):
        activation, algorithm = ('gelu', 'none') if gelu else ('none', '')
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], algorithm)
    product = F.linear(rows, weight, bias)
    return F.gelu(product) if gelu else product


def input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    """Computes ``grad @ weight``, the gradient with respect to an input.

    Args:
        grad: The gradient with respect to the output, ``(rows, out)``.
        weight: ``(out, in)``.

    Returns:
        ``(rows, in)``; for float16 in float32, in which it does not overflow.
    """
    if grad.dtype == torch.float16:
        if _have_wide_products(grad):
            return torch.mm(grad, weight, out_dtype=torch.float32)
        grad, weight = grad.float(), weight.float()
    return linear(grad, weight.t())


def weight_grad(grad: Tensor, rows: Tensor) -> Tensor:
    """Computes ``grad.T @ rows``, the gradient with respect to a weight.

    Args:
        grad: The gradient with respect to the output, ``(rows, out)``.
        rows: The input, ``(rows, in)``.

    Returns:
        ``(out, in)``; in float32 for float16, in which it can overflow, and for bfloat16 if that
        takes no longer.
    """
    if grad.dtype.itemsize == 2 and _have_wide_products(grad):
        return torch.mm(grad.t(), rows, out_dtype=torch.float32)
    if grad.dtype == torch.float16 or computed_in(grad.dtype, grad.device) != grad.dtype:
        grad, rows = grad.float(), rows.float()
    # In float32, oneDNN first transposes the left matrix. So the narrower matrix is on the left.
    if grad.dtype != torch.float32 or not _onednn_takes(rows):
        return grad.t() @ rows
    if grad.shape[1] > rows.shape[1]:
        return linear(rows.t(), grad.t()).t().contiguous()
    return linear(grad.t(), rows.t())


def _have_wide_products(rows: Tensor) -> bool:
    """Whether torch multiplies half-precision matrices into a float32 one: on GPUs, since 2.8."""
    return rows.is_cuda and 'dtype' in torch.ops.aten.mm.overloads()


def _onednn_takes(rows: Tensor) -> bool:
    """Whether oneDNN computes the product.

    It fuses the GELU. On processors with AVX-512 that are not from Intel, its float32 products are
    up to twice as fast as those of MKL, torch's default. With AVX2 alone, those of MKL are as fast,
    and need no transposed copies.
    """
    return has_products_for(rows) and not (rows.dtype == torch.float32 and _mkl_is_as_fast())


@functools.cache
def _mkl_is_as_fast() -> bool:
    return torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == 'AVX2'
