"""Writes an image folder of single shapes for classification, learned in minutes.

python tools/dataset_converters/make_shapes_folder.py OUT --train 4000 --val 200 --size 128 --seed 0

The images are those of ``make_shapes_dataset.py`` with one shape per image. The layout of OUT is
``train/CLASS/*.png`` and ``val/CLASS/*.png``. The same arguments give the same dataset.
"""

from __future__ import annotations

from pathlib import Path

import check_environment  # noqa: F401
import numpy as np
from make_shapes_dataset import CLASSES, draw, main, sample_shapes, write_image
from rich.progress import track


def write_class_folders(
    out: Path, split: str, count: int, size: int, rng: np.random.Generator
) -> None:
    """Writes the images of one split, one folder per class."""
    for name in CLASSES:
        (out / split / name).mkdir(parents=True, exist_ok=True)
    for image_id in track(range(1, count + 1), description=f'{split}: {count} images'):
        (shape,) = sample_shapes(rng, size, wanted=1)
        path = out / split / shape.name / f'{image_id:06d}.png'
        write_image(path, draw(rng, [shape], size))


if __name__ == '__main__':
    main(__doc__.splitlines()[0], write_class_folders)
