"""Two figures about a trained detector: what it predicts and how it learned."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.runner import Runner
from mmengine.structures import InstanceData

matplotlib.use('Agg')
from matplotlib import pyplot as plt

# Labels have a fixed size: small images are enlarged until a label fits beside its object.
DRAWN_SIDE = 384


def _enlarge(instances: InstanceData, factor: int) -> InstanceData:
    """Scales boxes and masks as the image is scaled, by an integer."""
    masks = instances.masks
    masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks.numpy()
    enlarged = instances.clone()
    enlarged.bboxes = instances.bboxes * factor
    enlarged.masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    return enlarged


@torch.no_grad()
def draw_predictions(runner: Runner, path: Path, count: int = 8, score_thr: float = 0.6) -> None:
    """Draws ground truth (left) and prediction (right) of the first test images.

    Args:
        runner: A runner with a trained instance segmenter and an annotated test set.
        path: File of the figure.
        count: Number of images, an even one. Default: 8.
        score_thr: Predictions of a lower score are left out. Default: 0.6.
    """
    runner.model.eval()
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = runner.test_dataloader.dataset.metainfo
    samples: list[DetDataSample] = []
    for data in runner.test_dataloader:
        samples += runner.model.test_step(data)
        if len(samples) >= count:
            break
    figure, axes = plt.subplots(count // 2, 2, figsize=(12, 1.6 * count), layout='constrained')
    for axis, sample in zip(axes.flat, samples, strict=False):
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        factor = -(-DRAWN_SIDE // max(image.shape[:2]))
        image = image.repeat(factor, axis=0).repeat(factor, axis=1)
        sample = sample.cpu()
        sample.gt_instances = _enlarge(sample.gt_instances, factor)
        sample.pred_instances = _enlarge(sample.pred_instances, factor)
        visualizer.add_datasample(sample.img_path, image, sample, pred_score_thr=score_thr)
        axis.imshow(visualizer.get_image())
        axis.axvline(image.shape[1], color='white')
        axis.set_title(f'{Path(sample.img_path).name}: ground truth | prediction', fontsize=10)
        axis.axis('off')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curve(scalars: Path, iterations_per_epoch: int, path: Path) -> None:
    """Draws loss and mAP over iterations.

    Args:
        scalars: The JSON lines that mmengine's LocalVisBackend wrote: training lines by iteration,
            validation lines by epoch.
        iterations_per_epoch: Length of the training dataloader.
        path: File of the figure.
    """
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = np.array([(line['step'], line['loss']) for line in lines if 'loss' in line])
    figure, loss_axis = plt.subplots(figsize=(8, 4.5), layout='constrained')
    loss_axis.plot(*losses.T, color='tab:gray', label='training loss')
    loss_axis.set(xlabel='iteration', ylabel='loss', ylim=(0, None))
    map_axis = loss_axis.twinx()
    for kind, name in (('bbox', 'box mAP'), ('segm', 'mask mAP')):
        key = f'coco/{kind}_mAP'
        scores = np.array([(line['step'], line[key]) for line in lines if key in line])
        map_axis.plot(scores[:, 0] * iterations_per_epoch, scores[:, 1], 'o-', label=name)
    map_axis.set(ylabel='mAP on the validation images', ylim=(0, 1))
    figure.legend(loc='outside upper center', ncols=3)
    figure.savefig(path, dpi=100)
    plt.close(figure)
