"""The compiled kernels: where they lie, and whether they take a map."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from . import portable

SOURCES = Path(__file__).parent / 'csrc'

# Instruction sets by the name torch gives the best one the processor has.
CPU_FLAGS = {
    'AVX512': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma'],
    'AVX2': ['-mavx2', '-mfma'],
}


def cpu_flags() -> list[str]:
    """The compiler's flags for this kind of processor."""
    return CPU_FLAGS.get(torch.backends.cpu.get_cpu_capability(), [])


def library_path() -> Path:
    """The file of the kernels for these sources, this torch and this kind of processor."""
    key = hashlib.sha256(f'{torch.__version__} {platform.machine()} {cpu_flags()}'.encode())
    for source in sorted(SOURCES.iterdir()):
        key.update(source.read_bytes())
    return Path(__file__).parent / f'kernels-{key.hexdigest()[:12]}.so'


@functools.cache
def is_built() -> bool:
    """Loads the kernels if they were built by ``python -m convnext_backbone.ops.build``."""
    path = library_path()
    if path.is_file():
        torch.ops.load_library(path)
    return path.is_file()


def pick_kernels(map: Tensor, dtype: torch.dtype) -> ModuleType:
    """The compiled kernels where they take ``map`` and ``dtype``, else :mod:`portable`.

    Args:
        map: Of shape ``(N, H, W, C)``.
        dtype: That of the block's matrix products.
    """
    types = (torch.float32, torch.bfloat16)
    fits = map.device.type == 'cpu' and map.dtype in types and dtype in types
    if fits and map.shape[-1] % 8 == 0 and is_built():
        return torch.ops.convnext_backbone
    return portable
