"""Writes configs of detectors for own data in COCO format."""

from __future__ import annotations

import math
import os
from pathlib import Path

from mmengine.config import Config
from own_data.config_text import Code, Setting
from own_data.detection_data import Split
from own_data.recipes import (
    Recipe,
    backbone_settings,
    base_line,
    checkpoint_settings,
    choose_weights,
    header,
    map_channels,
    normalization_settings,
    training_settings,
)

from convnext_backbone.engine.model_checks import READERS

COCO_IMAGES = 117_266  # with objects, in train2017
BOXES, MASKS = 'coco/bbox_mAP', 'coco/segm_mAP'
CASCADE = 'detection/cascade-mask-rcnn_convnext-{}_fpn_amp-ms-crop-3x_coco.py'

HEADS = {
    'mask-rcnn': Recipe(
        'Mask R-CNN',
        'detection/mask-rcnn_convnext-t_fpn_amp-ms-crop-3x_coco.py',
        COCO_IMAGES,
        MASKS,
        (('v2-base', 'detection/mask-rcnn_convnext-v2-b_fpn_lsj-3x-fcmae_coco.py'),),
    ),
    'cascade-mask-rcnn': Recipe(
        'Cascade Mask R-CNN',
        CASCADE.format('t'),
        COCO_IMAGES,
        MASKS,
        (
            ('small', CASCADE.format('s')),
            ('base', CASCADE.format('b-in22k-pre')),
            ('large', CASCADE.format('l')),
            ('xlarge', CASCADE.format('xl')),
        ),
    ),
    'faster-rcnn': Recipe(
        'Faster R-CNN', 'detection/faster-rcnn_convnext-t_fpn_amp-1x_coco.py', COCO_IMAGES, BOXES
    ),
    'retinanet': Recipe(
        'RetinaNet', 'detection/retinanet_convnext-t_fpn_amp-1x_coco.py', COCO_IMAGES, BOXES
    ),
    'fcos': Recipe(
        'FCOS',
        'detection/fcos_convnext-t_fpn_gn-head-center-normbbox-centeronreg-giou_amp-1x_coco.py',
        COCO_IMAGES,
        BOXES,
    ),
    'rtmdet': Recipe(
        'RTMDet-l', 'detection/rtmdet_l_convnext-b_4xb32-100e_coco.py', COCO_IMAGES, BOXES
    ),
    'dino': Recipe('DINO', 'detection/dino-4scale_convnext-t_8xb2-12e_coco.py', COCO_IMAGES, BOXES),
    'mask2former': Recipe(
        'Mask2Former', 'detection/mask2former_convnext-t_8xb2-lsj-50e_coco.py', COCO_IMAGES, MASKS
    ),
}
MASK_HEADS = [name for name, recipe in HEADS.items() if recipe.best == MASKS]
BOX_HEADS = [name for name in HEADS if name not in MASK_HEADS]


def write_detection_config(
    head: str,
    arch: str,
    weights: str | None,
    train: Split,
    val: Split,
    gpus: int,
    batch: int | None,
    out: Path,
) -> str:
    """Returns the text of a config.

    Args:
        head: One of ``HEADS``.
        arch: Name of the architecture.
        weights: File or address of the pre-trained weights; ``'none'`` for random ones, None for
            those of the recipe.
        train: The split to train on.
        val: The split to validate and test on.
        gpus: Number of GPUs, 0 for the CPU.
        batch: Images per step on each; None for the recipe's number.
        out: The file that it is for.

    Raises:
        FileNotFoundError: If the weights do not exist.
        ValueError: If they are of another architecture.
    """
    recipe = HEADS[head]
    path = recipe.path(arch)
    base = Config.fromfile(path)
    weights = choose_weights(arch, weights, base)
    batch = batch or base.train_dataloader.batch_size
    reader = next(key for key in READERS if key in base.model)
    model = normalization_settings(weights)
    model |= dict(backbone=backbone_settings(arch, weights), **class_settings(base))
    channels = map_channels(arch, base)
    model[reader] = dict(in_channels=channels, **model.get(reader, {}))
    norm = base.model[reader].get('norm_cfg') or {}
    if 'num_groups' in norm:
        # RTMDet's neck halves the channels; narrow ones have fewer groups.
        groups = math.gcd(norm.num_groups, *(count // 2 for count in channels))
        model[reader]['norm_cfg'] = dict(num_groups=groups)
    root, (train_file, train_images, val_file, val_images) = common_root(
        train.file, train.folder, val.file, val.folder
    )
    root_name, classes = Code('data_root'), dict(classes=Code('classes'))
    images = len(train.content['images']) - train.unannotated
    loaders = [
        dict(
            dataset=dict(
                data_root=root_name,
                ann_file=file,
                data_prefix=dict(img=f'{folder}/'),
                metainfo=classes,
            )
        )
        for file, folder in ((train_file, train_images), (val_file, val_images))
    ]
    settings = [
        Setting('_base_', base_line(path, out)),
        *checkpoint_settings(weights),
        Setting(
            'classes',
            train.classes,
            'In the order of the annotation files, which decides the labels.',
        ),
        Setting('data_root', root),
        Setting(
            'model',
            model,
            f'in_channels are the channels of {", ".join(base.model.backbone.out_features)}.',
        ),
        Setting('train_dataloader', dict(batch_size=batch, **loaders[0])),
        Setting('val_dataloader', loaders[1]),
        Setting('test_dataloader', Code('val_dataloader')),
        Setting('val_evaluator', dict(ann_file=Code(f'data_root + {val_file!r}'))),
        Setting('test_evaluator', Code('val_evaluator')),
        *training_settings(recipe, base, arch, weights, images, gpus, batch),
    ]
    what = (
        f'{recipe.title} with ConvNeXt {arch} for {len(train.classes)} classes, {images} images '
        'with objects.'
    )
    return header(what, weights) + '\n'.join(map(str, settings)) + '\n'


def class_settings(base: Config) -> dict:
    """The settings of the heads that hold the number of classes."""
    count = dict(num_classes=Code('len(classes)'))
    model = base.model
    if 'panoptic_head' in model:
        counts = dict(num_things_classes=Code('len(classes)'), num_stuff_classes=0)
        weights = dict(class_weight=Code('[1.0] * len(classes) + [0.1]'))
        return dict(panoptic_head=dict(**counts, loss_cls=weights), panoptic_fusion_head=counts)
    if 'roi_head' not in model:
        return dict(bbox_head=count)
    heads: dict = dict(bbox_head=count)
    if isinstance(model.roi_head.bbox_head, list):
        # Lists are replaced, not merged.
        heads['bbox_head'] = Code(
            '[dict(h, num_classes=len(classes)) for h in _base_.model.roi_head.bbox_head]'
        )
    if 'mask_head' in model.roi_head:
        heads['mask_head'] = count
    return dict(roi_head=heads)


def common_root(*paths: Path) -> tuple[str, list[str]]:
    """The deepest folder that holds all paths, ending in ``/``, and the paths from there."""
    if any(path.is_absolute() for path in paths):
        paths = tuple(path.absolute() for path in paths)
    root = os.path.commonpath([path.parent for path in paths]) or '.'
    return f'{root.rstrip("/")}/', [os.path.relpath(path, root) for path in paths]
