"""mmengine's own checkpoints under ``weights_only=True``.

With ``weights_only``, torch's unpickler builds only tensors and plain containers. mmengine also
stores its message hub: history buffers, with numpy arrays and a dict of their own methods. Exactly
these classes are allowed here, only while a file is read by mmengine's local loader or by this
package. Anything else in a file still stops the loading, and other code that calls ``torch.load``
sees no difference.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local as _load_from_local


def _history_statistic(owner: type, name: str) -> Callable:
    """Replaces ``getattr``, which pickles use to name a method of :class:`HistoryBuffer`."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(
            f'the checkpoint asks for the attribute {name!r} of {owner!r}; '
            "only the statistics of mmengine's HistoryBuffer are allowed"
        )
    return getattr(owner, name)


# numpy rebuilds arrays and scalars with two functions whose module numpy 2 renamed. A file contains
# the name that was valid when it was written.
_REBUILDERS = [
    (function, f'{module}.multiarray.{function.__name__}')
    for function in (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0])
    for module in ('numpy.core', 'numpy._core')
]
_DTYPES = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, bool)]
_ALLOWED = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *_DTYPES,
    *_REBUILDERS,
]


@contextmanager
def mmengine_classes_allowed() -> Iterator[None]:
    """Lets ``torch.load(..., weights_only=True)`` read mmengine's checkpoints inside a ``with``."""
    # What was allowed before must still be allowed afterwards.
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([entry for entry in _ALLOWED if entry not in before]):
        yield


def load_from_local(filename: str, map_location: object) -> dict:
    """Reads a local checkpoint as mmengine does, with the classes of its own files allowed."""
    with mmengine_classes_allowed():
        return _load_from_local(filename, map_location)


def register_loader() -> None:
    """Makes mmengine's ``load_from`` and ``resume`` use :func:`load_from_local`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
