"""The published pre-trained weights, by architecture.

The table is ``published.csv``. Its figures come from the tables of the official repositories, the
hub's model cards and timm's results; where nobody publishes one, the cell is empty.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from ..arch import ARCHS

# Licences that exclude commercial use. The DINOv3 License allows it under its own conditions.
NON_COMMERCIAL = ('CC-BY-NC-4.0', 'FAIR Research License')


@dataclass(frozen=True)
class PublishedWeights:
    """One published checkpoint.

    Attributes:
        arch: The ``arch`` of the model that it fits.
        source: Who publishes the file: ``Meta``, ``Hugging Face``, ``timm``, ``torchvision`` or
            ``OpenCLIP``.
        checkpoint: What to write into ``init_cfg=dict(type='Pretrained', checkpoint=...)``.
        pretraining: The method, where it is not classification, and the data, in order.
        size: Side of the training images in pixels, or None if it is not published.
        top1: Published top-1 accuracy on ImageNet-1K in per cent, or None.
        top1_size: Side of the images with which ``top1`` was measured, in pixels, or None.
        licence: The licence of the weights.
        tried: Whether the file itself was loaded with this package. Other files of its format
            always were.
        note: What else is worth knowing.
    """

    arch: str
    source: str
    checkpoint: str
    pretraining: str
    size: int | None
    top1: float | None
    top1_size: int | None
    licence: str
    tried: bool
    note: str

    @property
    def non_commercial(self) -> bool:
        """Whether the licence excludes commercial use."""
        return self.licence in NON_COMMERCIAL


def list_pretrained(arch: str | None = None) -> list[PublishedWeights]:
    """Lists published pre-trained weights.

    Args:
        arch: The name of an architecture, such as ``tiny`` or ``v2-base``. Default: None, all.

    Returns:
        The weights, ordered by architecture and source, but the first of an architecture is the one
        to start from if you have no reason for another. Nothing is downloaded.

    Raises:
        ValueError: If there is no architecture of this name.
    """
    if arch is not None and arch not in ARCHS:
        raise ValueError(f'unknown arch {arch!r}: choose one of {", ".join(ARCHS)}')
    text = files(__package__).joinpath('published.csv').read_text(encoding='utf-8')
    rows = [_parse(row) for row in csv.DictReader(text.splitlines())]
    return [weights for weights in rows if arch in (None, weights.arch)]


def _parse(row: dict[str, str]) -> PublishedWeights:
    return PublishedWeights(
        arch=row['arch'],
        source=row['source'],
        checkpoint=row['checkpoint'],
        pretraining=row['pretraining'],
        size=int(row['size']) if row['size'] else None,
        top1=float(row['top1']) if row['top1'] else None,
        top1_size=int(row['top1_size']) if row['top1_size'] else None,
        licence=row['licence'],
        tried=row['tried'] == 'yes',
        note=row['note'],
    )
