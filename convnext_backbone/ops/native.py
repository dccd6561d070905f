"""The kernels: where the compiled library is, when it is used, and when the Triton kernels are."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import threading
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

from . import fakes
from .tracing import constant_while_traced

SOURCES = Path(__file__).parent / 'csrc'

# Compiler flags, by torch's name of the processor's best instruction set.
INSTRUCTION_SETS = {
    'AVX512': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma'],
    'AVX2': ['-mavx2', '-mfma'],
}

# The dtypes that the kernels are compiled for.
COMPILED_DTYPES = (torch.float32, torch.bfloat16)

# The dtypes, numbers of channels, cards and versions that the Triton kernels support: what their
# tests compile. Since 8.0, cards compute in bfloat16. Older versions have no tuples of blocks.
TRITON_DTYPES = (*COMPILED_DTYPES, torch.float16)
TRITON_WIDTHS = range(40, 3073, 8)
MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 7)

_loading = threading.Lock()


def compiler_flags() -> list[str]:
    """Returns the compiler flags for this processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return ['-O3', '-fopenmp', *INSTRUCTION_SETS.get(capability, [])]


def cache_folder() -> Path:
    """Returns the folder of compiled kernels, next to those of other torch extensions.

    It is in the user's cache, so the package itself may be read-only. The environment variable
    ``TORCH_EXTENSIONS_DIR`` sets another folder, as for torch's own builder.

    Raises:
        FileNotFoundError: If the user has no home folder and no variable sets another one.
    """
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    extensions = os.environ.get('TORCH_EXTENSIONS_DIR') or f'{cache}/torch_extensions'
    try:
        return Path(extensions).expanduser() / 'convnext_backbone'
    except RuntimeError as error:
        raise FileNotFoundError(
            'the user has no home folder: set TORCH_EXTENSIONS_DIR to a folder for compiled kernels'
        ) from error


def library_path() -> Path:
    """Returns the library file for the current sources, flags, torch version and processor."""
    setting = f'{torch.__version__} {platform.machine()} {compiler_flags()}'
    key = hashlib.sha256(setting.encode())
    for source in sorted([*SOURCES.glob('*.h'), *SOURCES.glob('*.cpp')]):
        key.update(source.read_bytes())
    return cache_folder() / f'kernels-{key.hexdigest()[:12]}.so'


def checksum_path(library: Path) -> Path:
    """Returns the file that holds the checksum of a library."""
    return library.with_suffix('.sha256')


def checksum(library: Path) -> str:
    """Returns the SHA-256 checksum of a library."""
    return hashlib.sha256(library.read_bytes()).hexdigest()


def is_intact(library: Path) -> bool:
    """Whether a library exists and is unchanged since it was built.

    Loading a truncated library would end the process without an error message.
    """
    expected = checksum_path(library)
    if not library.is_file() or not expected.is_file():
        return False
    return checksum(library).encode() == expected.read_bytes().strip()


@functools.cache
def load_kernels() -> bool:
    """Loads the kernels if ``python -m convnext_backbone.ops.build`` has built them.

    Returns:
        Whether they can be used.
    """
    with _loading:  # two threads may run their first block at the same time
        try:
            return _load(library_path())
        except OSError as error:
            print_log(
                f'the compiled kernels cannot be read, so blocks run without them: {error}',
                logger='current',
            )
            return False


@constant_while_traced
def _are_loaded() -> bool:
    """As :func:`load_kernels`, for code that ``torch.compile`` traces."""
    return load_kernels()


def _load(path: Path) -> bool:
    if not path.exists():
        return False
    if not is_intact(path):
        print_log(
            f'{path} is damaged, so blocks run without it: '
            'run python -m convnext_backbone.ops.build to build it again',
            logger='current',
        )
        return False
    try:
        torch.ops.load_library(path)
    except OSError as error:
        print_log(
            f'{path} cannot be loaded, so blocks run without it ({error}): '
            'delete it and run python -m convnext_backbone.ops.build',
            logger='current',
        )
        return False
    fakes.register()
    return True


def have_kernels_for(features: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels, once built, support ``features`` and ``dtype``."""
    on_cpu = features.device.type == 'cpu'
    dtypes = (features.dtype, dtype)
    return on_cpu and all(d in COMPILED_DTYPES for d in dtypes) and features.shape[-1] % 8 == 0


@functools.cache
def have_triton() -> bool:
    """Whether a version of Triton is installed that can compile the Triton kernels."""
    if importlib.util.find_spec('triton') is None:
        return False
    import triton

    return tuple(map(int, triton.__version__.split('.')[:2])) >= MIN_TRITON


def have_triton_kernels(device: torch.device, channels: int, dtype: torch.dtype) -> bool:
    """Whether Triton kernels can be used.

    Args:
        device: Device of the feature maps.
        channels: Their number of channels.
        dtype: Dtype of the matrix products, or of the input of a norm.
    """
    return (
        device.type == 'cuda'
        and torch.version.hip is None
        and dtype in TRITON_DTYPES
        and channels in TRITON_WIDTHS
        and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
        and have_triton()
    )


def have_compiled_kernels(features: Tensor, dtype: torch.dtype) -> bool:
    """Whether compiled kernels are available that support ``features`` and ``dtype``.

    Args:
        features: Feature maps of shape ``(N, H, W, C)``.
        dtype: Dtype of the block's matrix products.
    """
    return have_kernels_for(features, dtype) and _are_loaded()
