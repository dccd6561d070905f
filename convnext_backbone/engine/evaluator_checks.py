"""Compares the annotation files of evaluators with those of the datasets that they judge."""

from __future__ import annotations

import json
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
        ValueError: If an evaluator reads a file with other images than those of the dataset.
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
        if os.path.realpath(path) == os.path.realpath(dataset.ann_file):
            continue
        # Other annotations of the same images are fine.
        if _images(dataset.ann_file) != _images(path):
            line = f'{split}_evaluator{"" if single else f"[{i}]"}.ann_file'
            raise ValueError(
                f'{line} is {path}, but {split}_dataloader reads {dataset.ann_file}: predictions '
                f'would be compared with other images; set {line}={dataset.ann_file!r}, or '
                f'another {split}_dataloader.dataset.ann_file'
            )


def check_crowds(dataset: BaseDataset, content: dict) -> None:
    """Refuses objects with which the evaluation would end in an error, after the first epochs.

    Args:
        dataset: A dataset that an evaluator judges by its file.
        content: The content of the file.

    Raises:
        ValueError: If an object that is evaluated has no ``iscrowd``.
    """
    classes = dataset.metainfo['classes']
    kept = {entry['id'] for entry in content['categories'] if entry['name'] in classes}
    images = {image['id'] for image in content['images']}
    for entry in content['annotations']:
        is_read = entry.get('category_id') in kept and entry.get('image_id') in images
        if is_read and entry.get('iscrowd') is None:
            raise ValueError(
                f'{dataset.ann_file}: annotation {entry["id"]} has no iscrowd, which the '
                'evaluation needs: add "iscrowd": 0 to single objects'
            )


def _images(path: str) -> dict:
    content = json.loads(fileio.get_text(path))
    return {image['id']: image['file_name'] for image in content['images']}


def _judge_of(dataset: BaseDataset) -> str:
    """The metric that needs the file of a dataset; panoptic ones may have other metrics, too."""
    return 'CocoPanopticMetric' if dataset.COCOAPI.__name__ == 'COCOPanoptic' else 'CocoMetric'
