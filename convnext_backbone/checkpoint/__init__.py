"""Checkpoints of other projects: reading them, translating their names, loading them.

The way of a checkpoint: ``sources`` and ``containers`` make a plain state dict of it, ``translate``
recognises its format in the table of ``formats`` and brings it to the project's names and layouts,
``audit`` decides what goes into the model, ``loading`` copies and reports.
"""

from .architecture import Architecture, read_architecture
from .audit import Target
from .loading import infer_arch, load_checkpoint
from .module import LoadsAnyCheckpoint
from .report import LoadReport
from .sources import read_checkpoint
from .translate import Translation, export, translate

__all__ = [
    'Architecture',
    'LoadReport',
    'LoadsAnyCheckpoint',
    'Target',
    'Translation',
    'export',
    'infer_arch',
    'load_checkpoint',
    'read_architecture',
    'read_checkpoint',
    'translate',
]
