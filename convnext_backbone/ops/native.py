"""The compiled kernels: where they lie, and whether they take a map."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path
from types import ModuleType

import torch
from mmengine.logging import print_log
from torch import Tensor

from . import portable

SOURCES = Path(__file__).parent / 'csrc'

# Instruction sets by the name torch gives the best one that the processor has.
INSTRUCTION_SETS = {
    'AVX512': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma'],
    'AVX2': ['-mavx2', '-mfma'],
}


def compiler_flags() -> list[str]:
    """The compiler's flags for this kind of processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return ['-O3', '-fopenmp', *INSTRUCTION_SETS.get(capability, [])]


def library_path() -> Path:
    """The file of the kernels for these sources and flags, this torch and this processor."""
    setting = f'{torch.__version__} {platform.machine()} {compiler_flags()}'
    key = hashlib.sha256(setting.encode())
    for source in sorted([*SOURCES.glob('*.h'), *SOURCES.glob('*.cpp')]):
        key.update(source.read_bytes())
    return Path(__file__).parent / f'kernels-{key.hexdigest()[:12]}.so'


@functools.cache
def load_kernels() -> bool:
    """Loads the kernels, if ``python -m convnext_backbone.ops.build`` has built them.

    Returns:
        Whether they can be used.
    """
    path = library_path()
    if not path.is_file():
        return False
    try:
        torch.ops.load_library(path)
    except OSError as error:
        print_log(f'{path} cannot be loaded, blocks run without it: {error}', logger='current')
        return False
    return True


def pick_kernels(map: Tensor, dtype: torch.dtype) -> ModuleType:
    """The compiled kernels where they take ``map`` and ``dtype``, else :mod:`portable`.

    Args:
        map: Of shape ``(N, H, W, C)``.
        dtype: That of the block's matrix products.
    """
    if have_kernels_for(map, dtype) and load_kernels():
        return torch.ops.convnext_backbone
    return portable


def have_kernels_for(map: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels take ``map`` and ``dtype`` once they are built."""
    types = (torch.float32, torch.bfloat16)
    on_cpu = map.device.type == 'cpu'
    return on_cpu and map.dtype in types and dtype in types and map.shape[-1] % 8 == 0
