"""Writes a dataset of coloured shapes for detection and segmentation, learned in minutes.

python tools/dataset_converters/make_shapes_dataset.py OUT --train 400 --val 40 --size 128 --seed 0

Every image has one to three circles, squares and triangles on a noisy dark background. They do not
overlap. They are upright, with a tilt of up to 10 degrees, and of random colours: only the form
tells the class. OUT has COCO's layout: ``train/``, ``val/`` and
``annotations/instances_{train,val}.json`` with boxes and polygons. For mmseg, ``masks/{train,val}``
has one mask per image, with the same name: 0 is background, 1 to 3 are the classes. The same
arguments give the same dataset.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import check_environment  # noqa: F401
import cv2
import numpy as np
from rich.progress import track

# Number of corners of each class's regular polygon.
CLASSES = {'circle': 32, 'square': 4, 'triangle': 3}
TILT = np.pi / 18
SMALLEST_SIZE = 32


@dataclass
class Shape:
    """One object: its class and its corners, ``(K, 2)`` in pixels, x before y."""

    name: str
    corners: np.ndarray

    @property
    def box(self) -> list[float]:
        """``[x, y, width, height]`` in pixels."""
        low, high = self.corners.min(axis=0), self.corners.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]

    @property
    def area(self) -> float:
        """Area in square pixels, by the shoelace formula."""
        x, y = self.corners.T
        return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def sample_shapes(rng: np.random.Generator, size: int, wanted: int) -> list[Shape]:
    """Places up to ``wanted`` shapes inside the image, without overlap of their circumcircles."""
    shapes: list[Shape] = []
    placed: list[tuple[np.ndarray, float]] = []
    # Overlapping shapes are skipped: some images get fewer than wanted, but at least one.
    for _ in range(50):
        if len(shapes) == wanted:
            break
        radius = rng.uniform(12, 28) * size / 128
        centre = rng.uniform(radius, size - radius, 2)
        if any(np.hypot(*(centre - other)) < radius + r for other, r in placed):
            continue
        name = rng.choice(list(CLASSES)).item()
        count = CLASSES[name]
        # Upright, with one side at the bottom, up to the tilt.
        first = np.pi / 2 + np.pi / count + rng.uniform(-TILT, TILT)
        angles = first + 2 * np.pi * np.arange(count) / count
        corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        shapes.append(Shape(name, corners.round(2)))
        placed.append((centre, radius))
    return shapes


def draw(rng: np.random.Generator, shapes: list[Shape], size: int) -> np.ndarray:
    """Paints the shapes in BGR, ``(size, size, 3)`` uint8.

    Args:
        rng: Source of the colours and the noise.
        shapes: What to paint.
        size: Side of the image in pixels.
    """
    image = np.full((size, size, 3), rng.uniform(20, 70), np.float32)
    for shape in shapes:
        rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.3, 0.7), rng.uniform(0.7, 1.0))
        fill(image, shape, [255 * c for c in reversed(rgb)], cv2.LINE_AA)
    image += rng.normal(0, 12, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def draw_mask(shapes: list[Shape], size: int) -> np.ndarray:
    """Paints class labels, ``(size, size)`` uint8: 0 is background, 1 the first of ``CLASSES``."""
    mask = np.zeros((size, size), np.uint8)
    for shape in shapes:
        fill(mask, shape, 1 + list(CLASSES).index(shape.name), cv2.LINE_8)
    return mask


def fill(image: np.ndarray, shape: Shape, color: Sequence[float] | int, line_type: int) -> None:
    """Fills a shape in place."""
    # OpenCV's origin is the centre of the first pixel, COCO's its corner; 4 fractional bits.
    corners = np.round((shape.corners - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(image, [corners], color, line_type, shift=4)


def write_split(out: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    """Writes the images of one split, its annotations and its masks."""
    category_ids = {name: i for i, name in enumerate(CLASSES, start=1)}
    images, annotations = [], []
    masks = out / 'masks' / split
    for folder in (out / split, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for image_id in track(range(1, count + 1), description=f'{split}: {count} images'):
        shapes = sample_shapes(rng, size, wanted=rng.integers(1, 4))
        file_name = f'{image_id:06d}.png'
        write_image(out / split / file_name, draw(rng, shapes, size))
        write_image(masks / file_name, draw_mask(shapes, size))
        images.append(dict(id=image_id, file_name=file_name, width=size, height=size))
        for shape in shapes:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category_ids[shape.name],
                    segmentation=[shape.corners.flatten().tolist()],
                    bbox=shape.box,
                    area=shape.area,
                    iscrowd=0,
                )
            )
    categories = [dict(id=i, name=name, supercategory='shape') for name, i in category_ids.items()]
    path = out / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    # An interrupted run must not leave half a file.
    part = path.with_suffix('.part')
    part.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    part.replace(path)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an image; unlike OpenCV, raises an OSError if the disk is full or read-only."""
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def make_shapes_dataset(
    out: Path, train: int, val: int, size: int, seed: int, write: Callable = write_split
) -> None:
    """Writes both splits to ``out``.

    Args:
        out: Folder of the dataset; created if missing. Existing files are overwritten.
        train: Number of training images, at least 1.
        val: Number of validation images, at least 1.
        size: Side of the square images in pixels, at least 32.
        seed: Random seed, not negative.
        write: Function that writes one split, with the arguments of :func:`write_split`.

    Raises:
        ValueError: If a number is too small.
        OSError: If the files cannot be written.
    """
    if train < 1 or val < 1:
        raise ValueError(f'each split needs at least 1 image, got train={train} and val={val}')
    if size < SMALLEST_SIZE:
        raise ValueError(f'images need a side of at least {SMALLEST_SIZE} pixels, got {size}')
    if seed < 0:
        raise ValueError(f'the random seed must not be negative, got {seed}')
    for split, count in (('train', train), ('val', val)):
        # The splits must differ for every seed.
        write(out, split, count, size, np.random.default_rng([seed, split == 'val']))


def main(description: str, write: Callable = write_split) -> None:
    """Calls :func:`make_shapes_dataset` with arguments from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('out', type=Path, help='folder of the dataset')
    parser.add_argument('--train', type=int, default=400, help='training images (default: 400)')
    parser.add_argument('--val', type=int, default=40, help='validation images (default: 40)')
    parser.add_argument('--size', type=int, default=128, help='side in pixels (default: 128)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    args = parser.parse_args()
    try:
        make_shapes_dataset(**vars(args), write=write)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f'cannot write to {error.filename or args.out}: {error.strerror}')


if __name__ == '__main__':
    main(__doc__.splitlines()[0])
