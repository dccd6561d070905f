"""What oneDNN can compute on this machine."""

from __future__ import annotations

import torch
from torch import Tensor


def have_onednn() -> bool:
    """Whether torch was built with oneDNN and may use it; builds for macOS have none."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def has_bfloat16() -> bool:
    """Whether oneDNN computes products in bfloat16 on this processor."""
    return have_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_products_for(matrix: Tensor) -> bool:
    """Whether oneDNN computes products of a matrix: on CPUs, in float32 and maybe in bfloat16."""
    if matrix.device.type != 'cpu':
        return False
    if matrix.dtype == torch.bfloat16:
        return has_bfloat16()
    return matrix.dtype == torch.float32 and have_onednn()
