"""Counts what folders of images and masks hold, and finds what is doubtful in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from convnext_backbone.engine.image_checks import read_size, spread

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')

# The value of pixels without a class.
IGNORED = 255

# Suffixes of masks that compression changes.
LOSSY = ('.jpg', '.jpeg')

# Of more masks, this many, evenly spread, are read.
MAX_MASKS = 2000


@dataclass
class MaskSplit:
    """The images and masks of one split.

    Attributes:
        name: ``'train'`` or ``'val'``.
        images: The folder of images.
        masks: The folder of masks, which have the names of the images.
        suffixes: The suffixes of images and masks.
        names: The names of the images, without suffix.
        missing: The names of images without mask.
        of_another_size: The names of masks that do not have the size of their image.
        read: The number of masks that were read.
        instances: The number of these masks in which a class is.
        pixels: The number of pixels of each class in them.
    """

    name: str
    images: Path
    masks: Path
    suffixes: tuple[str, str]
    names: list[str]
    missing: list[str]
    of_another_size: list[str] = field(default_factory=list)
    read: int = 0
    instances: Counter = field(default_factory=Counter)
    pixels: Counter = field(default_factory=Counter)

    @property
    def rows(self) -> dict[str, int]:
        """The counts, by what they are."""
        return {
            'images': len(self.names),
            'images without mask': len(self.missing),
            'masks that were read': self.read,
            'of another size than their image': len(self.of_another_size),
            'pixels with a class': self.pixels.total() - self.pixels[IGNORED],
            f'pixels that are ignored ({IGNORED})': self.pixels[IGNORED],
        }


def read_mask_split(name: str, images: Path, masks: Path) -> MaskSplit:
    """Reads the masks of a split.

    Raises:
        FileNotFoundError: If a folder does not exist or has no images.
        ValueError: If its images have several suffixes, or if masks are not of one channel or in a
            format that changes values.
    """
    suffixes = (_suffix(images), _suffix(masks))
    if suffixes[1].lower() in LOSSY:
        raise ValueError(
            f'{masks} holds {suffixes[1]} files, whose compression changes the values of masks: '
            'write them as PNG'
        )
    names = sorted(path.stem for path in images.glob(f'*{suffixes[0]}'))
    masked = {path.stem for path in masks.glob(f'*{suffixes[1]}')}
    missing = [name for name in names if name not in masked]
    split = MaskSplit(name, images, masks, suffixes, names, missing)
    here = [name for name in names if name in masked]
    for stem in track(spread(here, MAX_MASKS), description=f'reading the masks of {name}'):
        _count(split, stem)
    return split


def find_mask_doubts(train: MaskSplit, val: MaskSplit) -> list[str]:
    """What can be meant, but often is not; one sentence each."""
    doubts = []
    for split, use in ((train, 'nothing can learn it'), (val, 'its IoU cannot be measured')):
        absent = [i for i in range(count_classes(train, val)) if not split.instances[i]]
        if absent:
            doubts.append(f'{split.name}: no pixel of class {absent}: {use}')
    if train.images.resolve() == val.images.resolve():
        doubts.append('train and val have the same images')
    return doubts


def count_classes(*splits: MaskSplit) -> int:
    """The number of classes: one more than the largest value that is not ignored."""
    values = {value for split in splits for value in split.pixels} - {IGNORED}
    return max(values, default=-1) + 1


def check_mask_splits(train: MaskSplit, val: MaskSplit) -> None:
    """Refuses data on which a segmentor could not train.

    Raises:
        FileNotFoundError: If masks are missing.
        ValueError: If masks have another size than their images, or fewer than two classes.
    """
    for split in (train, val):
        if split.missing:
            raise FileNotFoundError(
                f'{len(split.missing)} of {len(split.names)} images in {split.images} have no '
                f'mask in {split.masks}, such as {split.missing[0]}{split.suffixes[1]}'
            )
        if split.of_another_size:
            raise ValueError(
                f'{len(split.of_another_size)} masks in {split.masks} have another size than '
                f'their image, such as {split.of_another_size[0]}{split.suffixes[1]}: write them '
                'in the size of the image, turned as its EXIF data say'
            )
    if count_classes(train, val) < 2:
        values = sorted({*train.pixels, *val.pixels})
        raise ValueError(
            f'the masks have only the values {values}, but {IGNORED} is ignored and a segmentor '
            'needs two classes: write the number of its class, from 0, into every pixel'
        )


def _suffix(folder: Path) -> str:
    if not folder.is_dir():
        raise FileNotFoundError(f'no such folder: {folder}')
    found = Counter(path.suffix for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not found:
        raise FileNotFoundError(f'no images in {folder}')
    if len(found) > 1:
        raise ValueError(f'{folder} has files of several kinds, {dict(found)}: use one suffix')
    return next(iter(found))


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask as mmseg does: the numbers in it, also if they stand for colours of a palette.

    Raises:
        ValueError: If it cannot be read, or is not of one channel of 8 bits.
    """
    try:
        with Image.open(path) as file:
            mask = np.array(file)
    except (OSError, SyntaxError) as error:
        raise ValueError(f'cannot read the mask {path} ({error}): write it again') from error
    if mask.ndim != 2 or mask.dtype not in (bool, np.uint8):
        raise ValueError(
            f'{path} must have one channel of 8 bits with the number of a class in each pixel, '
            f'got the shape {mask.shape} and {mask.dtype}'
        )
    return mask.astype(np.uint8)


def _count(split: MaskSplit, stem: str) -> None:
    mask = read_mask(split.masks / f'{stem}{split.suffixes[1]}')
    image = split.images / f'{stem}{split.suffixes[0]}'
    found = read_size(str(image))
    if found is None:
        raise ValueError(f'cannot read {image} as an image: write it again')
    size, turns = found
    # mmseg turns images as their EXIF data say, but not masks.
    if mask.shape != (size if turns else size[::-1]):
        split.of_another_size.append(stem)
    counts = np.bincount(mask.ravel(), minlength=256)
    present = {value: int(n) for value, n in enumerate(counts) if n}
    split.read += 1
    split.instances.update(present.keys())
    split.pixels.update(present)
