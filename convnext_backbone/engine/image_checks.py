"""Looks up the files of a dataset, and compares images with what annotation files say of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import cv2
from mmengine import fileio

# At most this many files, evenly spread, are looked up, and the headers of at most this many images
# are read.
MAX_LOOKUPS, MAX_HEADERS = 10_000, 1000

# The number of the orientation in EXIF data. From 5 on, it swaps width and height.
ORIENTATION, FIRST_SWAPPED = 0x0112, 5

Item = TypeVar('Item')


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most ``most`` of the items, evenly spread."""
    return items[:: -(-len(items) // most) or 1]


def check_files(paths: Sequence[str], source: str, backend: dict | None) -> None:
    """Checks that files exist and, on this machine, are not empty.

    Args:
        paths: The files.
        source: What lists them, for messages.
        backend: ``backend_args`` of mmengine's ``fileio``.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If one is empty, or a folder.
    """
    looked_up = spread(paths, MAX_LOOKUPS)
    absent = [p for p in looked_up if not fileio.exists(p, backend_args=backend)]
    if absent:
        raise FileNotFoundError(
            f'{len(absent)} of {len(looked_up)} files listed by {source} do not exist, such as '
            f'{absent[0]}: check data_root and data_prefix, or remove them from the list'
        )
    folders = [p for p in looked_up if os.path.isdir(p)]
    if folders:
        raise ValueError(
            f'{len(folders)} of {len(looked_up)} files listed by {source} are folders, such as '
            f'{folders[0]}: write the names of images there'
        )
    empty = [p for p in looked_up if os.path.isfile(p) and not os.path.getsize(p)]
    if empty:
        raise ValueError(
            f'{len(empty)} of {len(looked_up)} files listed by {source} are empty, such as '
            f'{empty[0]}: write them again, or remove them from the list'
        )


def check_headers(
    paths: Sequence[str], source: str, loading: Mapping, sizes: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """Checks by their headers that files on this machine are images of the size that is listed.

    Args:
        paths: The files.
        source: What lists them, for messages.
        loading: The ``LoadImageFromFile`` of the pipeline; other readers can read other files, so
            without one, nothing is checked.
        sizes: Width and height of each in pixels. Default: unknown.

    Returns:
        Warnings, one sentence each.

    Raises:
        ValueError: If a file is no image.
    """
    if not loading:
        return []
    # mmcv turns images as their EXIF data say, unless it is told not to.
    turns = not str(loading.get('color_type', 'color')).endswith(('orientation', 'unchanged'))
    chosen = [i for i in spread(range(len(paths)), MAX_HEADERS) if os.path.isfile(paths[i])]
    found = {i: read_size(paths[i]) for i in chosen}
    broken = [paths[i] for i in chosen if found[i] is None and not cv2.haveImageReader(paths[i])]
    if broken:
        raise ValueError(
            f'{len(broken)} of {len(chosen)} files listed by {source} are no images, such as '
            f'{broken[0]}: write them again, or remove them from the list'
        )
    other: list[tuple[int, tuple[int, int]]] = []
    turned: list[tuple[int, tuple[int, int]]] = []
    for i, header in found.items():
        if not header or not sizes:
            continue
        size, swapped = header
        if (size[::-1] if swapped and turns else size) != sizes[i]:
            (turned if swapped and size == sizes[i] else other).append((i, size))
    warnings = []
    if other:
        i, size = other[0]
        warnings.append(
            f'{source}: {len(other)} of {len(chosen)} images that were looked at do not have the '
            f'size that is listed, such as {paths[i]}, listed as {_size(sizes[i])}, but '
            f'{_size(size)}: boxes and masks that were made for another size are at wrong places'
        )
    if turned:
        i, size = turned[0]
        warnings.append(
            f'{source}: {len(turned)} of {len(chosen)} images that were looked at are turned '
            'when they are read, by the orientation in their EXIF data, such as '
            f'{paths[i]}, listed as {_size(size)}; if boxes do not fit, set '
            "color_type='color_ignore_orientation' in LoadImageFromFile of all pipelines"
        )
    return warnings


def read_size(path: str) -> tuple[tuple[int, int], bool] | None:
    """Width and height of an image file in pixels, before it is turned as its EXIF data say.

    Returns:
        The size, and whether turning swaps width and height; None if Pillow cannot read the file.
    """
    from PIL import Image  # which this package does not install

    try:
        with Image.open(path) as image:
            swapped = 'exif' in image.info and image.getexif().get(ORIENTATION, 1) >= FIRST_SWAPPED
            return image.size, swapped
    except (OSError, SyntaxError, TypeError, Image.DecompressionBombError):
        return None


def _size(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'
