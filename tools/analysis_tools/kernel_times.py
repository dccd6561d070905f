"""Times the Triton operators one by one, in the calls of a train step of ConvNeXt-T.

check_gpu.py writes the times to its file, and kernel_report.py prints them beside its predictions.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from kernel_plans import STAGES, Plan, stage_calls
from torch import Tensor
from torch.utils._pytree import tree_map_only

from convnext_backbone.ops import triton_kernels

REPEATS = 10

# Bytes that a card writes before each call. They take longer than Python takes to launch the
# kernels, which so start without a gap, and they leave nothing else in the caches.
WRITTEN, WRITES = 2**29, 4

# Milliseconds by operator and number of channels. The keys are as JSON has them.
Times = dict[str, dict[str, float]]


def time_kernels(device: str, images: int, size: tuple[int, int]) -> Times:
    """Measures every operator at every width of ConvNeXt-T in bfloat16, as the report counts it.

    Args:
        device: ``'cuda'``, or ``'cpu'`` for Triton's interpreter, whose times mean nothing.
        images: Number of images.
        size: Their height and width.

    Returns:
        The times, without the operators that did not run.
    """
    times: Times = {}
    for index, (channels, _) in enumerate(STAGES):
        for name, call in stage_calls(index, images, size).items():
            try:
                elapsed = time_call(call, device)
            except Exception as error:  # the others are still of interest
                print(f'{name} does not run at {channels} channels: {error}')
                continue
            times.setdefault(name, {})[str(channels)] = elapsed
    return times


def time_call(call: Plan, device: str) -> float:
    """Returns the milliseconds of a planned call, with random arguments."""

    def fill(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, device=device).to(tensor.dtype)

    operator = getattr(triton_kernels, call.name)
    run = partial(operator, *tree_map_only(Tensor, fill, call.arguments))
    if device == 'cpu':
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    run()  # which compiles
    return statistics.median(queued(run) for _ in range(REPEATS))


def queued(run: Callable[[], object]) -> float:
    """Returns the milliseconds that a card needs for a call whose launches are queued in time."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    other = torch.empty(WRITTEN, dtype=torch.uint8, device='cuda')
    for _ in range(WRITES):
        other.zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def read_times(path: Path) -> Times:
    """Reads the times in a file of check_gpu.py.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not a file of check_gpu.py that has times of kernels.
    """
    try:
        times = json.loads(path.read_text())['kernels']
        if times and all(t > 0 for widths in times.values() for t in widths.values()):
            return times
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # told below
    raise ValueError(
        f'{path} has no times of kernels: give a file that check_gpu.py --out has written'
    )
