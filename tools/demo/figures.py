"""Figures of a trained model: predictions and training curve."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData

from convnext_backbone.command_line import whole_file

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

# Labels have a fixed size: small images are enlarged so that a label fits next to its object.
DRAWN_SIDE = 384


def _enlarge(instances: InstanceData, factor: int) -> InstanceData:
    """Scales boxes and masks by an integer, like the image."""
    masks = instances.masks
    masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks.numpy()
    enlarged = instances.clone()
    enlarged.bboxes = instances.bboxes * factor
    enlarged.masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    return enlarged


@torch.no_grad()
def _predict(runner: Runner, count: int) -> list[BaseDataElement]:
    """Predictions and ground truth of the first test images."""
    runner.model.eval()
    samples: list[BaseDataElement] = []
    for data in runner.test_dataloader:
        samples += runner.model.test_step(data)
        if len(samples) >= count:
            break
    return [sample.cpu() for sample in samples[:count]]


def draw_instances(runner: Runner, path: Path, count: int = 8, score_thr: float = 0.6) -> None:
    """Draws ground truth (left) and prediction (right) of the first test images.

    Args:
        runner: A runner with a trained instance segmenter and an annotated test set.
        path: Output file.
        count: Number of images, must be even. Default: 8.
        score_thr: Predictions with a lower score are not drawn. Default: 0.6.
    """
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = runner.test_dataloader.dataset.metainfo
    figure, axes = plt.subplots(count // 2, 2, figsize=(12, 1.6 * count), layout='constrained')
    for axis, sample in zip(axes.flat, _predict(runner, count), strict=False):
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        factor = -(-DRAWN_SIDE // max(image.shape[:2]))
        image = image.repeat(factor, axis=0).repeat(factor, axis=1)
        sample.gt_instances = _enlarge(sample.gt_instances, factor)
        sample.pred_instances = _enlarge(sample.pred_instances, factor)
        visualizer.add_datasample(sample.img_path, image, sample, pred_score_thr=score_thr)
        axis.imshow(visualizer.get_image())
        axis.axvline(image.shape[1], color='white')
        axis.set_title(f'{Path(sample.img_path).name}: ground truth | prediction', fontsize=10)
        axis.axis('off')
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)


def draw_segments(runner: Runner, path: Path, count: int = 8) -> None:
    """Draws image, ground truth and prediction of the first test images, with a legend.

    Args:
        runner: A runner with a trained segmentor and an annotated test set.
        path: Output file.
        count: Number of images, must be even. Default: 8.
    """
    meta = runner.test_dataloader.dataset.metainfo
    palette = np.array(meta['palette'], np.uint8)
    figure, axes = plt.subplots(count // 2, 2, figsize=(12, 1.1 * count), layout='constrained')
    for axis, sample in zip(axes.flat, _predict(runner, count), strict=False):
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        labels = (sample.gt_sem_seg.data[0], sample.pred_sem_seg.data[0])
        axis.imshow(np.hstack([image, *(palette[label.numpy()] for label in labels)]))
        for i in (1, 2):
            axis.axvline(i * image.shape[1] - 0.5, color='white')
        name = Path(sample.img_path).name
        axis.set_title(f'{name}: image | ground truth | prediction', fontsize=10)
        axis.axis('off')
    patches = [
        Patch(color=color / 255, label=name)
        for color, name in zip(palette, meta['classes'], strict=True)
    ]
    figure.legend(handles=patches, loc='outside upper center', ncols=len(patches))
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)
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
