"""The share of images whose class is among the k most probable ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..models.checks import check_integer


@METRICS.register_module('ConvNextAccuracy')
class Accuracy(BaseMetric):
    """Top-k accuracy in percent, as ``accuracy/top1``, ``accuracy/top5``.

    Args:
        topk: The values of k to report. Default: (1, 5).
        collect_device: As in mmengine's metrics. Default: ``'cpu'``.

    Raises:
        TypeError: If a k is not an integer.
        ValueError: If ``topk`` is empty or a k is below 1; in an evaluation, if samples have no
            ``gt_label``, a label that is no class of the model, or fewer than k classes.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        if not isinstance(topk, Sequence) or not topk:
            raise ValueError(f'topk must be one or more positive integers, got {topk!r}')
        for k in topk:
            check_integer('topk', k, at_least=1)
        self.topk = tuple(topk)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Stores for every k whether the label is among the k highest scores."""
        for sample in data_samples:
            if 'gt_label' not in sample:
                raise ValueError('the accuracy needs a gt_label in every data sample')
            scores, label = sample['pred_score'], torch.as_tensor(sample['gt_label'])
            if max(self.topk) > len(scores):
                raise ValueError(
                    f'topk={self.topk} needs at least as many classes, got {len(scores)}: '
                    'lower topk in the config of the metric'
                )
            if label.numel() != 1 or not 0 <= label < len(scores):
                raise ValueError(
                    f'gt_label must be one class between 0 and {len(scores) - 1}, got '
                    f'{label.tolist()}: the dataset and the model need the same classes'
                )
            ranking = scores.argsort(descending=True, stable=True)
            rank = (ranking == label.to(ranking.device)).nonzero().item()
            self.results.append([rank < k for k in self.topk])

    def compute_metrics(self, results: list[list[bool]]) -> dict[str, float]:
        """Returns the mean over all images, in percent."""
        hits = torch.tensor(results, dtype=torch.float64).mean(dim=0) * 100
        return {f'top{k}': hit for k, hit in zip(self.topk, hits.tolist(), strict=True)}
