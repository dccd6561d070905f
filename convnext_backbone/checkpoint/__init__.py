"""Checkpoints of other projects: reading them, translating their names, loading them.

The way of a checkpoint: ``sources`` and ``containers`` make a plain state dict of it, ``translate``
recognises its format in the table of ``formats`` and brings it to the project's names and layouts,
``audit`` decides what goes into the model, ``loading`` copies and reports.
"""

from .architecture import Architecture
from .audit import Target
from .loading import AnyPretrainedInit, adopt_state_dict, infer_arch, load_checkpoint
from .report import LoadReport

__all__ = [
    'AnyPretrainedInit',
    'Architecture',
    'LoadReport',
    'Target',
    'adopt_state_dict',
    'infer_arch',
    'load_checkpoint',
]
