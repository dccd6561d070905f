"""Tables of what a dataset holds, and a picture of annotated images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from own_data.detection_data import Split
from own_data.segmentation_data import IGNORED, MaskSplit, read_mask
from rich.console import Console
from rich.table import Table

from convnext_backbone.engine.coco_file import SHORTEST, has_mask
from convnext_backbone.engine.run_lengths import pixels_of

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from pycocotools import mask as coco_masks

# Names of classes and files may have dollar signs.
matplotlib.rcParams['text.parse_math'] = False

# More classes are counted, but not listed.
MAX_ROWS = 40
ROWS, COLUMNS = 3, 4

console = Console(markup=False, soft_wrap=True)


def print_tables(
    train: Split | MaskSplit, val: Split | MaskSplit, classes: Sequence[str | int], unit: str
) -> None:
    """Prints the counts of both splits, and of each class.

    Args:
        train: The split to train on.
        val: The split to validate on.
        classes: The keys of ``instances``.
        unit: What is counted for each class.
    """
    table = Table(title='What the data hold')
    for column in ('', 'train', 'val'):
        table.add_column(column, justify='left' if not column else 'right')
    for row, count in train.rows.items():
        table.add_row(row, f'{count:,}', f'{val.rows[row]:,}')
    table.add_section()
    for name in list(classes)[:MAX_ROWS]:
        counts = (f'{split.instances[name]:,}' for split in (train, val))
        table.add_row(f'{unit} {name}', *counts)
    if len(classes) > MAX_ROWS:
        table.add_row(f'and {len(classes) - MAX_ROWS} more classes', '', '')
    console.print(table)


def draw_objects(split: Split, path: Path) -> None:
    """Draws images of a split with their boxes, masks and classes.

    Args:
        split: The split; images with objects are chosen, evenly spread.
        path: Output file.
    """
    objects: dict[int, list[dict]] = {}
    for entry in split.objects:
        objects.setdefault(entry['image_id'], []).append(entry)
    names = {category['id']: category['name'] for category in split.content['categories']}
    colors = dict(zip(names, _palette(len(names)), strict=True))

    def draw(axis: Axes, image: dict) -> None:
        pixels = _read(split.folder / image['file_name'])
        axis.imshow(pixels)
        for entry in objects[image['id']]:
            color = colors.get(entry['category_id'], 'white')
            x, y, width, height = entry['bbox']
            axis.add_patch(Rectangle((x, y), width, height, fill=False, color=color, lw=1.5))
            label = str(names.get(entry['category_id'], 'unknown'))
            box = dict(facecolor=color, edgecolor='none', pad=1)
            axis.text(x, y, label, fontsize=7, color='white', va='bottom', bbox=box, clip_on=True)
            if has_mask(entry) and _fits(entry['segmentation'], *pixels.shape[:2]):
                axis.contour(_mask(entry['segmentation'], *pixels.shape[:2]), [0.5], colors=[color])
        axis.set_title(image['file_name'], fontsize=8)

    _draw_grid([i for i in split.content['images'] if i['id'] in objects], draw, [], path)


def draw_masks(split: MaskSplit, path: Path) -> None:
    """Draws images of a split with their masks.

    Args:
        split: The split.
        path: Output file.
    """
    values = sorted(value for value in split.pixels if value != IGNORED)
    palette = np.zeros((256, 3))
    palette[values] = _palette(len(values))

    def draw(axis: Axes, name: str) -> None:
        image = _read(split.images / f'{name}{split.suffixes[0]}') / 255
        mask = read_mask(split.masks / f'{name}{split.suffixes[1]}')
        axis.imshow(0.5 * image + 0.5 * palette[mask])
        axis.set_title(name, fontsize=8)

    legend = [Patch(color=palette[value], label=str(value)) for value in values]
    _draw_grid(split.names, draw, legend, path)


def _draw_grid(items: list, draw: Callable, legend: list[Patch], path: Path) -> None:
    count = min(len(items), ROWS * COLUMNS)
    chosen = [items[i * len(items) // count] for i in range(count)]
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(14, 11), layout='constrained')
    for axis in axes.flat:
        axis.axis('off')
    for axis, item in zip(axes.flat, chosen, strict=False):
        draw(axis, item)
    if legend:
        figure.legend(handles=legend, loc='outside upper center', ncols=min(len(legend), 12))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _palette(count: int) -> list[tuple[float, float, float]]:
    """Colours for classes, different ones as far as there are."""
    return [plt.get_cmap('tab20')((2 * i + i // 10) % 20)[:3] for i in range(count)]


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f'cannot read {path} as an image: write it again')
    return image[..., ::-1]


def _fits(segmentation: list | dict, height: int, width: int) -> bool:
    """Whether a mask can be drawn: detectors of boxes alone do not need whole run lengths."""
    if isinstance(segmentation, list):
        return True
    whole = pixels_of(segmentation['counts']) == height * width
    return whole and segmentation['size'] == [height, width]


def _mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Polygons or run lengths as a mask."""
    if isinstance(segmentation, list):  # pycocotools takes two points for a box
        segmentation = [polygon for polygon in segmentation if len(polygon) >= SHORTEST]
    if isinstance(segmentation, dict) and isinstance(segmentation['counts'], str):
        return coco_masks.decode(segmentation)
    found = coco_masks.frPyObjects(segmentation, height, width)
    return coco_masks.decode(coco_masks.merge(found) if isinstance(found, list) else found)
