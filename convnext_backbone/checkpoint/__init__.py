"""Reads checkpoints of other projects, translates their names and loads them.

The steps: ``downloads``, ``archives``, ``sources`` and ``containers`` read a plain state dict.
``translate`` recognises its format with the table in ``formats`` and converts it to this package's
names and layouts. ``audit`` decides which tensors go into the model (``target``), and ``explain``
says why others do not fit. ``loading`` copies them and reports.
``pretrained`` connects these steps to torch and mmengine, ``larger_models`` to models around a
model. ``published`` lists the weights that others offer.
"""

from .downloads import download
from .hf_config import other_arguments
from .infer import infer_arch, read_arch
from .larger_models import guard_larger_models
from .loading import load_checkpoint
from .mmengine_files import (
    MMENGINE_CLASSES,
    allowed,
    read_mmengine_checkpoint,
    register_loader,
)
from .pretrained import LoadsAnyCheckpoint
from .published import PublishedWeights, list_pretrained
from .report import LoadReport
from .sources import read_checkpoint
from .target import Target
from .translate import Translation, export, translate

__all__ = [
    'MMENGINE_CLASSES',
    'LoadReport',
    'LoadsAnyCheckpoint',
    'PublishedWeights',
    'Target',
    'Translation',
    'allowed',
    'download',
    'export',
    'guard_larger_models',
    'infer_arch',
    'list_pretrained',
    'load_checkpoint',
    'other_arguments',
    'read_arch',
    'read_checkpoint',
    'read_mmengine_checkpoint',
    'register_loader',
    'translate',
]
