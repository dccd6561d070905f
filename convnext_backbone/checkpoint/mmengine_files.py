"""Reads mmengine's own checkpoints with ``weights_only=True``.

With ``weights_only``, torch's unpickler builds only tensors and plain containers. mmengine also
stores its message hub: history buffers, with numpy arrays and a dict of their own methods. Only
these classes are also allowed, and only while mmengine's local loader or this package reads a
file. Other classes in a file are still an error, and ``torch.load`` in other code behaves as
before. (While a file is read, other threads of the process accept the same classes.)
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from .archives import check_archive, check_end
from .downloads import download


def _history_statistic(owner: type, name: str) -> Callable:
    """Replaces ``getattr``, which pickles use to store a method of :class:`HistoryBuffer`."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(
            f'the checkpoint needs the attribute {name!r} of {owner!r}, but only the statistics '
            "min, max, current and mean of mmengine's HistoryBuffer are allowed"
        )
    return getattr(owner, name)


# numpy rebuilds arrays and scalars with two functions. numpy 2 renamed their module, so files
# contain the old or the new name.
_REBUILDERS: list[tuple[Any, str]] = [
    (rebuild, f'{module}.multiarray.{rebuild.__name__}')
    for rebuild in (cast(Any, value.__reduce__()[0]) for value in (np.empty(0), np.float64(0)))
    for module in ('numpy.core', 'numpy._core')
]
_DTYPES = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, bool)]
MMENGINE_CLASSES: list[Any] = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *_DTYPES,
    *_REBUILDERS,
]


# What torch allows is one set for the whole process.
_lock = threading.RLock()


@contextmanager
def allowed(classes: list[Any]) -> Iterator[None]:
    """Lets ``torch.load(..., weights_only=True)`` build some classes inside a ``with`` block.

    Only one thread at a time is inside; other threads wait. What was allowed before is allowed
    afterwards. Inside, ``classes`` come before entries of other libraries with the same names.

    Args:
        classes: Classes, or pairs of a class and its name in the file, such as
            ``MMENGINE_CLASSES``.
    """
    with _lock:
        before = torch.serialization.get_safe_globals()
        names = {_name_in_file(entry) for entry in classes}
        others = [entry for entry in before if _name_in_file(entry) not in names]
        _allow_exactly([*others, *classes])
        try:
            yield
        finally:
            _allow_exactly(before)


def _allow_exactly(entries: list[Any]) -> None:
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(entries)


def _name_in_file(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


def load_from_local(filename: str, map_location: Any) -> dict:
    """Reads a local checkpoint as mmengine does, with the classes of its own files allowed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged in a way that torch does not see.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no such checkpoint: {filename}')
    check_archive(path)
    with allowed(MMENGINE_CLASSES), path.open('rb') as file:
        checkpoint = torch.load(file, map_location=map_location)
        check_end(file, path)
    return checkpoint


def register_loader() -> None:
    """Makes mmengine's ``load_from`` and ``resume`` use :func:`load_from_local`.

    It replaces any other loader of local files that was registered before.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def read_mmengine_checkpoint(path: str) -> dict:
    """Reads a checkpoint of mmengine, on the CPU, from a file or an http(s) address.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or something else.
        OSError: If the download fails.
    """
    if '://' in path:
        path = str(download(path))
    elif not Path(path).is_file():
        raise FileNotFoundError(f'no such checkpoint: {path}')
    try:
        checkpoint = load_from_local(path, map_location='cpu')
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f'{path} is damaged, or no checkpoint: torch cannot read it') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    return checkpoint
