"""Annotation files in COCO's format: reads them, and refuses what would fail later."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine import fileio

from .run_lengths import pixels_of

# What mmdet reads of each object and image.
BOX_KEYS = ('image_id', 'category_id', 'bbox', 'area')
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')

# The ids in a file, by list.
IDS = {
    'images': ('id',),
    'categories': ('id',),
    'annotations': ('id', 'image_id', 'category_id'),
}

# Boxes may reach this far outside of the image, in pixels: files round coordinates.
TOLERANCE = 1

# The coordinates of a polygon of three points. mmdet leaves out shorter ones.
SHORTEST = 6


def read_coco(path: str | Path, backend_args: dict | None = None) -> dict:
    """Reads an annotation file and checks its entries.

    Args:
        path: File or address.
        backend_args: As in mmengine's ``fileio``. Default: None, by the prefix of the path.

    Returns:
        Its content, with the lists ``images``, ``categories`` and ``annotations``; the last one is
        empty if the file has none, and may hold entries that mmdet ignores.

    Raises:
        ValueError: If the file is damaged, has another format, no images, or an id twice; if an
            image, a category or an object lacks what mmdet reads of it.
    """
    try:
        content = json.loads(fileio.get_text(path, backend_args=backend_args))
    except ValueError as error:
        raise ValueError(f'{path} is not a complete JSON file ({error}): write it again') from error
    found = content if isinstance(content, dict) else {}
    lacking = [key for key in ('images', 'categories') if key not in found]
    if lacking:
        raise ValueError(f'{path} has no {" and no ".join(lacking)}: it must be in COCO format')
    found['annotations'] = found.get('annotations') or []
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(found[key], list) or not all(isinstance(e, dict) for e in found[key]):
            raise ValueError(f'{path}: {key} must be a list of dicts, as in COCO format')
    _check_ids(path, found)
    _check_images(path, found['images'])
    nameless = [entry for entry in found['categories'] if not {'id', 'name'} <= entry.keys()]
    if nameless:
        raise ValueError(f'{path} has a category without id or name: {nameless[0]}')
    ids = Counter(entry['id'] for entry in found['categories'])
    if twice := [number for number, count in ids.items() if count > 1]:
        raise ValueError(f'{path} uses the category id {twice[0]!r} twice: each needs its own')
    names = Counter(entry['name'] for entry in found['categories'])
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f'{path} has several categories {twice[0]!r}: merge or rename them')
    # Those of panoptic files have no boxes of their own.
    if not any('segments_info' in entry for entry in found['annotations']):
        _check_objects(path, found['annotations'])
    return found


def check_run_lengths(path: str | Path, content: dict) -> None:
    """Compares the size of run lengths, and their sum, with the size of the image.

    Args:
        path: The file, for messages.
        content: What :func:`read_coco` returns.

    Raises:
        ValueError: If they differ.
    """
    sizes = {image['id']: [image['height'], image['width']] for image in content['images']}
    for entry in content['annotations']:
        mask, size = entry.get('segmentation'), sizes.get(entry.get('image_id'))
        if not size or not isinstance(mask, dict) or entry.get('ignore'):
            continue
        if mask['size'] != size:
            raise ValueError(
                f'{path}: the mask of annotation {entry["id"]} has the size {mask["size"]}, but '
                f'image {entry["image_id"]!r} has [height, width] = {size}: write the mask again'
            )
        if pixels_of(mask['counts']) != size[0] * size[1]:
            raise ValueError(
                f'{path}: the run lengths of annotation {entry["id"]} are damaged, their sum is '
                f'not the {size[0] * size[1]} pixels of image {entry["image_id"]!r}: write the '
                'mask again'
            )


def is_outside(box: Sequence[float], width: int, height: int) -> bool:
    """Whether a box ``[x, y, width, height]`` reaches outside of its image."""
    x, y, w, h = box
    low, right, bottom = -TOLERANCE, width + TOLERANCE, height + TOLERANCE
    return x < low or y < low or x + w > right or y + h > bottom


def has_mask(entry: Mapping) -> bool:
    """Whether an object has a mask that mmdet takes: run lengths or a polygon of three points."""
    mask = entry.get('segmentation') or []
    return isinstance(mask, Mapping) or any(len(polygon) >= SHORTEST for polygon in mask)


def has_short_polygon(entry: Mapping) -> bool:
    """Whether one of the polygons of an object has fewer than three points."""
    mask = entry.get('segmentation') or []
    return isinstance(mask, list) and any(len(polygon) < SHORTEST for polygon in mask)


def _check_ids(path: str | Path, content: dict) -> None:
    for part, keys in IDS.items():
        for entry in content[part]:
            for key in keys:
                if not isinstance(entry.get(key, 0), (int, float, str)):
                    raise ValueError(
                        f'{path} has an entry of {part} whose {key} is neither a number nor text, '
                        f'but {entry[key]!r}: number them'
                    )


def _check_images(path: str | Path, images: list[dict]) -> None:
    if not images:
        raise ValueError(f'{path} lists no images: there is nothing to train or test on')
    for image in images:
        lacking = [key for key in IMAGE_KEYS if key not in image]
        if lacking:
            raise ValueError(f'{path} has an image without {", ".join(lacking)}: {image}')
        sides = image['width'], image['height']
        has_size = all(_is_number(side) and side > 0 for side in sides)
        if not has_size or not isinstance(image['file_name'], str) or not image['file_name']:
            raise ValueError(f'{path} has an image without a file name or a size: {image}')
    if len({image['id'] for image in images}) < len(images):
        raise ValueError(f'{path} uses an image id twice: each image needs its own')


def _check_objects(path: str | Path, objects: list[dict]) -> None:
    ids = {entry.get('id') for entry in objects}
    if len(ids) < len(objects) or None in ids:
        raise ValueError(f'{path} has annotations without an id of their own: number them')
    for entry in objects:
        if entry.get('ignore'):
            continue
        lacking = [key for key in BOX_KEYS if key not in entry]
        if lacking:
            raise ValueError(f'{path}: annotation {entry.get("id")} has no {", ".join(lacking)}')
        if not _is_box(entry['bbox']):
            raise ValueError(
                f'{path}: the bbox of annotation {entry.get("id")} must be [x, y, width, height], '
                f'got {entry["bbox"]}'
            )
        if not _is_number(entry['area']):
            raise ValueError(
                f'{path}: the area of annotation {entry["id"]} must be a number of square pixels, '
                f'got {entry["area"]!r}'
            )
        if entry.get('iscrowd') not in (None, 0, 1):
            raise ValueError(
                f'{path}: iscrowd of annotation {entry["id"]} must be 0 or 1, '
                f'got {entry["iscrowd"]!r}'
            )
        if not _is_mask(entry.get('segmentation')):
            raise ValueError(
                f'{path}: the segmentation of annotation {entry["id"]} must be a list of polygons '
                f'[x1, y1, x2, y2, ...] or a dict with size and counts (numbers, or text in their '
                f'compressed form), got {entry["segmentation"]}'
            )


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_mask(mask: object) -> bool:
    if isinstance(mask, dict):
        counts = mask.get('counts')
        are_runs = isinstance(counts, list) and all(_is_number(n) and n >= 0 for n in counts)
        return 'size' in mask and (are_runs or isinstance(counts, str))
    return not mask or (isinstance(mask, list) and all(map(_is_polygon, mask)))


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(_is_number, polygon))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
