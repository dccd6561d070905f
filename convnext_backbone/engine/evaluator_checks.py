"""Compares the annotation files of evaluators with those of the datasets that they judge."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mmengine import fileio
from mmengine.dataset import BaseDataset

from .model_checks import kind_of


def check_evaluators(
    evaluators: Mapping | Sequence[Mapping], split: str, dataset: BaseDataset | None
) -> None:
    """Checks the annotation files of evaluators.

    mmdet numbers images in each file for itself: with the file of another split, predictions are
    compared with the objects of other images, and a perfect detector has an AP near 0.

    Args:
        evaluators: One or several, as in a config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        dataset: Its dataset, if that has a file in COCO format; None if it has not, or if there are
            several. Then, only the existence of files is checked.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If an evaluator reads another file than the dataset.
    """
    single = isinstance(evaluators, Mapping)
    for i, evaluator in enumerate([evaluators] if single else evaluators):
        path = evaluator.get('ann_file')
        if not path:
            continue
        if not fileio.exists(path, backend_args=evaluator.get('backend_args')):
            raise FileNotFoundError(f'no annotation file {path}: check ann_file of the evaluator')
        if dataset is None or kind_of(evaluator) != _judge_of(dataset):
            continue
        if os.path.realpath(path) != os.path.realpath(dataset.ann_file):
            line = f'{split}_evaluator{"" if single else f"[{i}]"}.ann_file'
            raise ValueError(
                f'{line} is {path}, but {split}_dataloader reads {dataset.ann_file}: predictions '
                f'would be compared with other images; set {line}={dataset.ann_file!r}, or '
                f'another {split}_dataloader.dataset.ann_file'
            )


def _judge_of(dataset: BaseDataset) -> str:
    """The metric that needs the file of a dataset; panoptic ones may have other metrics, too."""
    return 'CocoPanopticMetric' if dataset.COCOAPI.__name__ == 'COCOPanoptic' else 'CocoMetric'
