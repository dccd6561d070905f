"""Compares the operators of the installed mmcv with the device that mmengine chooses."""

from __future__ import annotations

import sys


def missing_operators(device: str) -> str | None:
    """Returns what is wrong with mmcv's operators in one sentence, or None if nothing is.

    An mmcv that was compiled without CUDA fails on a GPU, but only when a model reaches its first
    operator, and its error does not say how to fix it.

    Args:
        device: As ``mmengine.device.get_device()`` gives it: ``'cpu'``, ``'cuda'``, ...
    """
    if device != 'cuda':
        return None
    try:
        from mmcv.ops import get_compiling_cuda_version
    except ImportError:  # classifiers need no mmcv, and other models fail at once
        return None
    if get_compiling_cuda_version() != 'not available':
        return None
    return (
        f'mmcv in {sys.prefix} has operators for the CPU only, and mmengine uses the GPU: take the '
        'environment .venv-cuda that `make env DEVICE=cuda` sets up, or hide the GPU with '
        'CUDA_VISIBLE_DEVICES='
    )
