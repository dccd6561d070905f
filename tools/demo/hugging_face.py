"""Turns a classifier's model folder of Hugging Face into a config."""

from __future__ import annotations

import json
from pathlib import Path

from mmengine.config import Config

import convnext_backbone.data  # noqa: F401
from convnext_backbone import infer_arch
from convnext_backbone.checkpoint.hf_config import read_config
from convnext_backbone.extraction.preprocessing import NORMALIZATIONS

# What most published models were trained with.
MEAN, STD = NORMALIZATIONS['imagenet']
IMAGENET = dict(image_mean=MEAN, image_std=STD)


def read_model_folder(folder: Path) -> Config:
    """Reads labels, architecture, activation and image size of a classifier.

    Args:
        folder: A folder with ``config.json``, weights and, if images are not normalised as for
            ImageNet, ``preprocessor_config.json``.

    Returns:
        A config with a ``model`` and a ``test_dataloader.dataset``.

    Raises:
        ValueError: If it is no classifier, or if the weights or the config are damaged.
    """
    described = read_config(folder)
    kinds = described.get('architectures') or [described.get('model_type')]
    if not str(kinds[0]).endswith('ForImageClassification'):
        raise ValueError(f'{folder} holds a {kinds[0]} by its config.json, not a classifier')
    # Hugging Face does not write the names of its default, two classes.
    names = described.get('id2label') or {'0': 'LABEL_0', '1': 'LABEL_1'}
    path = folder / 'preprocessor_config.json'
    images = IMAGENET | (json.loads(path.read_text()) if path.is_file() else {})
    model = dict(
        type='ConvNextForImageClassification',
        **infer_arch(folder),
        num_labels=len(names),
        problem_type=described.get('problem_type'),
        data_preprocessor=dict(
            type='ImgDataPreprocessor',
            mean=[255 * value for value in images['image_mean']],
            std=[255 * value for value in images['image_std']],
            bgr_to_rgb=True,
        ),
    )
    pipeline = [
        dict(type='LoadImageFromFile'),
        *_resize(images.get('size') or described.get('image_size', 224), images.get('crop_pct')),
        dict(type='ConvNextPackInputs'),
    ]
    classes = [names[key] for key in sorted(names, key=int)]
    dataset = dict(metainfo=dict(classes=classes), pipeline=pipeline)
    return Config(dict(model=model, test_dataloader=dict(dataset=dataset)))


def _resize(size: int | dict, crop_pct: float | None) -> list[dict]:
    """Resizes as Hugging Face: below 384 pixels with a crop of the centre."""
    side = size if isinstance(size, int) else size.get('shortest_edge') or size['height']
    interpolation = dict(interpolation='bicubic')
    if side >= 384:
        return [dict(type='Resize', scale=(side, side), **interpolation)]
    # The long side is not limited.
    short = int(side / (crop_pct or 224 / 256))
    return [
        dict(type='Resize', scale=(100000, short), keep_ratio=True, **interpolation),
        dict(type='CenterCrop', crop_size=side),
    ]
