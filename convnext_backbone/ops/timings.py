"""Times of a block's candidates on a card: measured once, kept in a file.

A file holds the times of one version of the package's kernels, of torch and of Triton, by card,
width and dtype. Sizes of images are no part of it, so new sizes never measure again.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.logging import print_log

from ..command_line import whole_file
from .native import cache_folder

# Milliseconds of a step, by mode ('train' or 'inference') and candidate.
Times = dict[str, dict[str, float]]

MODES = ('train', 'inference')

WARM_UP, REPEATS = 2, 5


def clock(device: torch.device) -> float:
    """The time in milliseconds, after all work on the device is done."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3


def measure(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> dict:
    """Returns the median time of each candidate. They run in turn, so that load affects all."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(WARM_UP + REPEATS):
        for name, run in candidates.items():
            start = clock(device)
            run()
            times[name].append(clock(device) - start)
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def file() -> Path:
    """Returns the file for the current sources and versions, beside the compiled kernels.

    Users without a home folder have it in the folder of temporary files.
    """
    versions = [torch.__version__]
    if find_spec('triton') is not None:
        import triton

        versions.append(triton.__version__)
    key = hashlib.sha256(' '.join(versions).encode())
    for source in sorted(Path(__file__).parent.rglob('*.py')):
        key.update(source.read_bytes())
    try:
        folder = cache_folder()
    except FileNotFoundError:
        folder = Path(tempfile.gettempdir())
    return folder / f'times-{key.hexdigest()[:12]}.json'


def load(path: Path) -> dict[str, Times]:
    """Returns the times in a file. A damaged file is reported and counts as empty."""
    try:
        entries = json.loads(path.read_text())
        if all(_is_complete(times) for times in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        pass  # reported below
    print_log(f'{path} is damaged, so ConvNeXt blocks are timed again', logger='current')
    return {}


def save(path: Path, key: str, times: Times) -> None:
    """Adds an entry to a file: the file is either the old one or complete."""
    try:
        with whole_file(path) as part:
            part.write_text(json.dumps(load(path) | {key: times}, indent=2))
    except OSError as error:
        print_log(f'times of ConvNeXt blocks cannot be kept ({error})', logger='current')


def _is_complete(times: Times) -> bool:
    return all(
        {'modules', 'torch'} <= times[mode].keys()
        and all(isinstance(value, float) for value in times[mode].values())
        for mode in MODES
    )
