"""The fast path of ConvNeXt's layers: less memory in training, and less time.

:func:`run_layer` and :func:`run_norm` are all that the model calls. They decide between the
functions of this package and the layer's own modules, which are the reference.
"""

from .dispatch import run_layer, run_norm

__all__ = ['run_layer', 'run_norm']
