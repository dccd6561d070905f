"""Which implementation of a block runs on a GPU: Triton kernels, torch operators or the modules.

On a card, the candidates are timed at the first block of a width and a dtype, in a fraction of a
second (and once the compilation of the Triton kernels). The times are kept in a file, so the next
process measures nothing. The fused candidate with the faster training step runs, unless the modules
are faster still. With ``prefer='memory'``, blocks that train run fused even then, as the modules
keep about twice as much for the backward pass.

``CONVNEXT_KERNELS`` overrides the choice: ``triton``, ``torch`` or ``modules`` instead of ``auto``.
Under deterministic algorithms, the choice is fixed: Triton kernels run if there are any, and else
the modules. The same holds while a CUDA graph is captured, when nothing can be timed, unless the
times are known from before.

In a distributed job, the rank that gets to a width first measures it, or finds it in its file, and
writes it to the store of the process group, where the others read it. So all ranks choose the same,
and they need not get there at the same time.

On the CPU, blocks always run fused: there the gain is known.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from types import ModuleType

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from . import portable, timings
from .native import (
    MIN_TRITON,
    TRITON_DTYPES,
    have_compiled_kernels,
    have_kernels_for,
    have_triton,
    have_triton_kernels,
)
from .timings import Times
from .tracing import constant_while_traced

VARIABLE = 'CONVNEXT_KERNELS'
CHOICES = ('auto', 'triton', 'torch', 'modules')
PREFERENCES = ('speed', 'memory')

# Times that this process has measured, read from the file or got from another rank.
_known: dict[tuple[torch.device, int, torch.dtype], Times] = {}
_measuring = threading.Lock()


def pick_kernels(features: Tensor, dtype: torch.dtype) -> ModuleType:
    """Returns the operators of a fused block: compiled or Triton kernels, or :mod:`portable`.

    Args:
        features: Feature maps of shape ``(N, H, W, C)``.
        dtype: Dtype of the matrix products.

    Raises:
        ValueError: As :func:`setting`.
    """
    if features.device.type == 'cuda':
        return operators(fused_kernels(features.device, features.shape[-1], dtype))
    if have_compiled_kernels(features, dtype):
        return torch.ops.convnext_backbone
    return portable


def kernels_title(features: Tensor, dtype: torch.dtype) -> str:
    """Describes for the log which kernels a block uses, and how to get faster ones."""
    if features.device.type == 'cuda':
        name = fused_kernels(features.device, features.shape[-1], dtype)
        if name == 'triton':
            return 'with Triton kernels'
    elif have_compiled_kernels(features, dtype):
        return 'with compiled kernels'
    elif have_kernels_for(features, dtype):
        return (
            'but without compiled kernels, which is slower than module by module for small images: '
            'run python -m convnext_backbone.ops.build to compile the kernels'
        )
    return f'in torch operators ({features.shape[-1]} channels in {dtype})'


@constant_while_traced
def fused_kernels(device: torch.device, channels: int, dtype: torch.dtype) -> str:
    """Returns which kernels fused blocks use on a GPU: ``triton`` or ``torch``.

    Raises:
        ValueError: As :func:`setting`.
    """
    name = setting()
    if name == 'torch' or not have_triton_kernels(device, channels, dtype):
        return 'torch'
    if name == 'triton' or fixed(device, channels, dtype):
        return 'triton'
    # Also with 'modules', which fused=True overrides.
    return fused_candidate(known_times(device, channels, dtype))


@constant_while_traced
def fused_norm_is_better(device: torch.device, channels: int, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel of a norm runs on a GPU: where those of blocks do.

    Raises:
        ValueError: As :func:`setting`.
    """
    return setting() != 'modules' and fused_kernels(device, channels, dtype) == 'triton'


def have_norm_kernels(features: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for the norm of a feature map, and it should run.

    Args:
        features: Feature maps of shape ``(N, H, W, C)``.
        dtype: Dtype of the norm's parameters.
    """
    if features.device.type == 'cuda':
        is_better = fused_norm_is_better(features.device, features.shape[-1], features.dtype)
        return is_better and dtype in TRITON_DTYPES
    return have_compiled_kernels(features, dtype)


@constant_while_traced
def modules_are_better(
    device: torch.device, channels: int, dtype: torch.dtype, trains: bool, prefer: str
) -> str | None:
    """Returns why the modules of a block should run on a device, or None if it should run fused.

    Args:
        device: The device of the feature maps.
        channels: Their number of channels.
        dtype: Dtype of the matrix products.
        trains: Whether there will be a backward pass.
        prefer: ``'speed'`` or ``'memory'``.

    Raises:
        ValueError: As :func:`setting`.
    """
    if device.type != 'cuda':
        return None
    name = setting()
    if name != 'auto':
        return f'{VARIABLE}={name}' if name == 'modules' else None
    reason = fixed(device, channels, dtype)
    if reason is not None:
        if have_triton_kernels(device, channels, dtype):
            return None
        return f'there are no Triton kernels for them, and the choice is fixed: {reason}'
    if trains and prefer == 'memory':
        return None
    times = known_times(device, channels, dtype)
    step = times['train' if trains else 'inference']
    if step['modules'] >= step[fused_candidate(times)]:
        return None
    return f'they are faster on {torch.cuda.get_device_name(device)}'


def setting() -> str:
    """Returns the value of the environment variable ``CONVNEXT_KERNELS``. Default: ``auto``.

    Raises:
        ValueError: If it is unknown, or ``triton`` without a Triton of the needed version.
    """
    name = os.environ.get(VARIABLE, 'auto')
    if name not in CHOICES:
        allowed = ', '.join(CHOICES)
        raise ValueError(
            f'the environment variable {VARIABLE} must be one of {allowed}, got {name!r}'
        )
    if name == 'triton' and not have_triton():
        needed = '.'.join(map(str, MIN_TRITON))
        raise ValueError(
            f'{VARIABLE}=triton needs Triton {needed} or newer; a newer torch for CUDA brings it'
        )
    return name


def fixed(device: torch.device, channels: int, dtype: torch.dtype) -> str | None:
    """Returns why the choice does not depend on times now, or None if it does."""
    if torch.are_deterministic_algorithms_enabled():
        return 'deterministic algorithms are on'
    if is_capturing() and not are_known(device, channels, dtype):
        return 'a CUDA graph is captured'
    return None


def is_capturing() -> bool:
    """Whether a CUDA graph is captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def fused_candidate(times: Times) -> str:
    """Returns the fused candidate with the fastest training step."""
    fused = {name: value for name, value in times['train'].items() if name != 'modules'}
    return min(fused, key=fused.__getitem__)


def operators(name: str) -> ModuleType:
    """Returns the operators of a fused candidate, ``triton`` or ``torch``."""
    if name == 'torch':
        return portable
    from . import triton_kernels

    return triton_kernels


def known_times(device: torch.device, channels: int, dtype: torch.dtype) -> Times:
    """Returns the times on a device, the same on all ranks of a job, and measures at most once."""
    setup = device, channels, dtype
    with _measuring:
        if setup not in _known:
            if is_distributed():
                store = dist.distributed_c10d._get_default_store()
                key = f'convnext {channels} {dtype}'
                _known[setup] = shared_times(store, key, lambda: stored_times(*setup))
            else:
                _known[setup] = stored_times(*setup)
        return _known[setup]


def are_known(device: torch.device, channels: int, dtype: torch.dtype) -> bool:
    """Whether :func:`known_times` measures nothing.

    In a distributed job, the file does not count: it can differ from rank to rank.
    """
    if (device, channels, dtype) in _known:
        return True
    return not is_distributed() and times_in_file(device, channels, dtype) is not None


def is_distributed() -> bool:
    """Whether this process is part of a distributed job."""
    return dist.is_available() and dist.is_initialized()


def shared_times(store: dist.Store, key: str, find: Callable[[], Times]) -> Times:
    """Returns the times of the first process that asks a store for a key.

    The first process never waits for another. If it fails, so do the others, after the store's
    timeout.
    """
    if store.add(f'{key} asked', 1) == 1:
        store.set(key, json.dumps(find()))
    return json.loads(store.get(key))


def stored_times(device: torch.device, channels: int, dtype: torch.dtype) -> Times:
    """Returns the times in the file, or measures and stores them."""
    times = times_in_file(device, channels, dtype)
    if times is None:
        from .trial import time_block  # which runs blocks, which ask this module

        times = time_block(device, channels, dtype, candidates(device, channels, dtype))
        path, key = timings.file(), title(device, channels, dtype)
        timings.save(path, key, times)
        texts = (f'{name} {value:.2f}' for name, value in sorted(times['train'].items()))
        print_log(
            f'ConvNeXt blocks timed on {key}: ms of a training step: {", ".join(texts)}; '
            f'kept in {path}',
            logger='current',
        )
    return times


def times_in_file(device: torch.device, channels: int, dtype: torch.dtype) -> Times | None:
    """Returns the times in the file, or None."""
    return timings.load(timings.file()).get(title(device, channels, dtype))


def title(device: torch.device, channels: int, dtype: torch.dtype) -> str:
    """Returns the key of times in the file: the card, the width and the dtype."""
    card = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    return f'{card}, {channels} channels, {dtype}'


def candidates(device: torch.device, channels: int, dtype: torch.dtype) -> dict[str, ModuleType]:
    """Returns the operators of all fused candidates, by name."""
    names = ('triton', 'torch') if have_triton_kernels(device, channels, dtype) else ('torch',)
    return {name: operators(name) for name in names}
