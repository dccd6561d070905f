"""Reads mmengine's own checkpoints with ``weights_only=True``.

With ``weights_only``, torch's unpickler builds only tensors and plain containers. mmengine also
stores its message hub: history buffers, with numpy arrays and a dict of their own methods. Only
these classes are also allowed, and only while mmengine's local loader or this package reads a file.
Other classes in a file are still an error, and ``torch.load`` in other code behaves as before.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local as _load_from_local


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


@contextmanager
def allowed(classes: list) -> Iterator[None]:
    """Lets ``torch.load(..., weights_only=True)`` build more classes inside a ``with`` statement.

    Args:
        classes: Classes, or pairs of a class and its name in the file, such as
            ``MMENGINE_CLASSES``.
    """
    # Classes that were allowed before must stay allowed after the context.
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([entry for entry in classes if entry not in before]):
        yield


def load_from_local(filename: str, map_location: object) -> dict:
    """Reads a local checkpoint as mmengine does, but allows the classes in mmengine's own files."""
    with allowed(MMENGINE_CLASSES):
        return _load_from_local(filename, map_location)


def register_loader() -> None:
    """Makes mmengine's ``load_from`` and ``resume`` use :func:`load_from_local`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
