"""What mmengine's own checkpoints hold besides tensors, allowed under ``weights_only=True``.

torch loads checkpoints with an unpickler that builds nothing but tensors and plain containers.
mmengine also stores its message hub: history buffers with numpy arrays inside and a dict of their
own methods. Exactly that is allowed here; anything else in a checkpoint still stops the loading.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def _history_statistic(owner: type, name: str) -> Callable:
    """Stands in for the ``getattr`` by which a pickle names a method of :class:`HistoryBuffer`."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(
            f'the checkpoint asks for the attribute {name!r} of {owner!r}; '
            "only the statistics of mmengine's HistoryBuffer are allowed"
        )
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(..., weights_only=True)`` read checkpoints written by mmengine."""
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, bool)]
    # numpy rebuilds arrays and scalars through two functions whose module numpy 2 renamed; files
    # carry the name of the numpy that wrote them.
    rebuilders = [
        (function, f'{module}.multiarray.{function.__name__}')
        for function in (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0])
        for module in ('numpy.core', 'numpy._core')
    ]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_statistic, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *dtypes,
            *rebuilders,
        ]
    )
