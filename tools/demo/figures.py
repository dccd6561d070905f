"""Figures of a trained model: predictions and training curve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import mmcv
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from rich.progress import track

from convnext_backbone.command_line import whole_file

matplotlib.use('Agg')
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import Bbox

# An outline must be seen on every object and ground.
HALO = [patheffects.withStroke(linewidth=4, foreground='white')]


def draw_instances(axis: Axes, sample: BaseDataElement, meta: dict, score_thr: float = 0.7) -> None:
    """Draws ground truth (left) and prediction (right) of one image.

    Objects get outlines, boxes and labels in the colour of their class. They keep their own colour.

    Args:
        axis: Where to draw.
        sample: mmdet's data sample with annotations and predictions.
        meta: ``classes`` and ``palette`` of the dataset.
        score_thr: Predictions with a lower score are not drawn. Default: 0.7.
    """
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    width = image.shape[1]
    _show(axis, sample, [image, image], 'ground truth | prediction')
    found = sample.pred_instances
    _outline(axis, sample.gt_instances, meta, 0)
    _outline(axis, found[found.scores >= score_thr], meta, width)


def _outline(axis: Axes, instances: InstanceData, meta: dict, left: int) -> None:
    """Draws outlines, boxes and labels of objects, ``left`` pixels further to the right."""
    masks = instances.masks
    masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks.numpy()
    for i, (label, box) in enumerate(zip(instances.labels, instances.bboxes, strict=True)):
        color = np.array(meta['palette'][label]) / 255
        contours, _ = cv2.findContours(
            masks[i].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        for contour in contours:
            closed = np.vstack([contour[:, 0], contour[:1, 0]])
            axis.plot(left + closed[:, 0], closed[:, 1], color=color, path_effects=HALO)
        x, y, right, bottom = box.tolist()
        axis.add_patch(Rectangle((left + x, y), right - x, bottom - y, fill=False, ec=color))
        text = meta['classes'][label]
        if 'scores' in instances:
            text += f' {instances.scores[i]:.2f}'
        # A label stays inside of its image.
        is_high, is_right = y < 10, x + right > masks.shape[2]
        axis.text(
            *(left + (right if is_right else x), bottom if is_high else y, text),
            ha='right' if is_right else 'left',
            va='top' if is_high else 'bottom',
            color='white',
            fontsize=9,
            weight='bold',
            bbox=dict(facecolor=color, edgecolor='none', pad=1),
            clip_on=True,
        )


def separate_labels(axis: Axes) -> None:
    """Moves labels towards the middle of the image until none covers another one.

    The figure must have its final size.
    """
    axis.figure.draw_without_rendering()
    middle = axis.get_window_extent().get_points()[:, 1].mean()
    placed: list[Bbox] = []
    for text in axis.texts:
        box = original = text.get_bbox_patch().get_window_extent()
        is_high = bool(box.y0 + box.y1 > 2 * middle)
        for other in sorted(placed, key=lambda b: b.y0, reverse=is_high):
            if box.overlaps(other):
                box = box.translated(0, other.y0 - box.y1 - 1 if is_high else other.y1 - box.y0 + 1)
        placed.append(box)
        x, y = axis.transData.transform(text.get_position())
        moved = (x, y + box.y0 - original.y0)
        text.set_y(axis.transData.inverted().transform(moved)[1])


def draw_segments(axis: Axes, sample: BaseDataElement, meta: dict) -> None:
    """Draws one image (left), its ground truth and its prediction (right).

    Args:
        axis: Where to draw.
        sample: mmseg's data sample with annotations and predictions.
        meta: ``palette`` of the dataset.
    """
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    palette = np.array(meta['palette'], np.uint8)
    labels = (sample.gt_sem_seg.data[0], sample.pred_sem_seg.data[0])
    parts = [image, *(palette[label.numpy()] for label in labels)]
    _show(axis, sample, parts, 'image | ground truth | prediction')


def _show(axis: Axes, sample: BaseDataElement, parts: list[np.ndarray], title: str) -> None:
    """Shows images of one size side by side."""
    axis.imshow(np.hstack(parts))
    axis.autoscale(False)  # a box at the edge of the image must not shrink it
    for i in range(1, len(parts)):
        axis.axvline(i * parts[0].shape[1] - 0.5, color='white')
    axis.set_title(f'{Path(sample.img_path).name}: {title}', fontsize=10)
    axis.axis('off')


def draw_predictions(
    runner: Runner, draw: Callable, folder: Path, overview: Path, count: int = 8
) -> None:
    """Draws the predictions of all test images, each to a file with the image's own name.

    Args:
        runner: A runner with a trained model and an annotated test set.
        draw: :func:`draw_instances` or :func:`draw_segments`.
        folder: Folder of the drawings.
        overview: File for the first images in one figure.
        count: Number of images in ``overview``, must be even. Default: 8.
    """
    meta = runner.test_dataloader.dataset.metainfo
    samples = _predict(runner)
    for sample in track(samples, description=f'drawing {len(samples)} predictions'):
        figure, axis = plt.subplots(layout='constrained')
        draw(axis, sample, meta)
        _save(figure, meta, folder / Path(sample.img_path).name)
    figure, axes = plt.subplots(count // 2, 2, layout='constrained')
    for axis, sample in zip(axes.flat, samples, strict=False):
        draw(axis, sample, meta)
    _save(figure, meta, overview)


@torch.no_grad()
def _predict(runner: Runner) -> list[BaseDataElement]:
    """Predictions and ground truth of the test images."""
    runner.model.eval()
    batches = [runner.model.test_step(data) for data in runner.test_dataloader]
    return [sample.cpu() for batch in batches for sample in batch]


def _save(figure: Figure, meta: dict, path: Path) -> None:
    """Writes a figure with the colours of the classes as its legend."""
    patches = [
        Patch(color=np.array(color) / 255, label=name)
        for color, name in zip(meta['palette'], meta['classes'], strict=True)
    ]
    figure.legend(handles=patches, loc='outside upper center', ncols=len(patches))
    grid = figure.axes[0].get_gridspec()
    height, width = figure.axes[0].images[0].get_size()
    # Inches; a title needs 0.4 and the legend 0.5.
    figure.set_size_inches(7 * grid.ncols, grid.nrows * (7 * height / width + 0.4) + 0.5)
    for axis in figure.axes:
        separate_labels(axis)
    with whole_file(path) as part:
        figure.savefig(part, dpi=100)
    plt.close(figure)


def draw_curve(
    scalars: Path, iterations_per_epoch: int, metrics: dict[str, str], perfect: float, path: Path
) -> None:
    """Draws the loss and metrics over iterations.

    Args:
        scalars: JSON lines from mmengine's LocalVisBackend. Steps are iterations in training lines
            and epochs in validation lines.
        iterations_per_epoch: Length of the training dataloader.
        metrics: Names and keys of the metrics.
        perfect: The framework's value for a perfect score; drawn as 1.
        path: Output file.
    """
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = np.array([(line['step'], line['loss']) for line in lines if 'loss' in line])
    figure, loss_axis = plt.subplots(figsize=(8, 4.5), layout='constrained')
    loss_axis.plot(*losses.T, color='tab:gray', label='training loss')
    loss_axis.set(xlabel='iteration', ylabel='loss', ylim=(0, None))
    score_axis = loss_axis.twinx()
    for name, key in metrics.items():
        scores = np.array([(line['step'], line[key] / perfect) for line in lines if key in line])
        score_axis.plot(scores[:, 0] * iterations_per_epoch, scores[:, 1], 'o-', label=name)
    score_axis.set(ylabel=f'{", ".join(metrics)} on the validation images', ylim=(0, 1))
    figure.legend(loc='outside upper center', ncols=1 + len(metrics))
    with whole_file(path) as part:
        figure.savefig(part, dpi=100)
    plt.close(figure)
