"""Writes configs of segmentors for own folders of images and masks."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from own_data.config_text import Code, Setting
from own_data.detection import common_root
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
from own_data.segmentation_data import MaskSplit, count_classes

ADE20K_IMAGES = 20_210
UPERNET = 'segmentation/convnext-{}_amp-160k_ade20k-{}.py'

HEADS = {
    'upernet': Recipe(
        'UPerNet',
        UPERNET.format('t_upernet', '512x512'),
        ADE20K_IMAGES,
        'mIoU',
        (
            ('small', UPERNET.format('s_upernet', '512x512')),
            ('base', UPERNET.format('b-in22k-pre_upernet', '640x640')),
            ('large', UPERNET.format('l_upernet', '640x640')),
            ('xlarge', UPERNET.format('xl_upernet', '640x640')),
        ),
    ),
    'semantic-fpn': Recipe(
        'Semantic FPN', UPERNET.format('t_fpn', '512x512'), ADE20K_IMAGES, 'mIoU'
    ),
    'segformer': Recipe(
        'SegFormer head', UPERNET.format('t_segformer', '512x512'), ADE20K_IMAGES, 'mIoU'
    ),
}


def write_segmentation_config(
    head: str,
    arch: str,
    weights: str | None,
    train: MaskSplit,
    val: MaskSplit,
    gpus: int,
    batch: int | None,
    out: Path,
) -> str:
    """Returns the text of a config; arguments and errors as for detectors."""
    recipe = HEADS[head]
    path = recipe.path(arch)
    base = Config.fromfile(path)
    weights = choose_weights(arch, weights, base)
    batch = batch or base.train_dataloader.batch_size
    root, folders = common_root(train.images, train.masks, val.images, val.masks)
    pairs = ((train, *folders[:2]), (val, *folders[2:]))
    loaders = [
        dict(
            dataset=dict(
                type='BaseSegDataset',
                data_root=Code('data_root'),
                data_prefix=dict(img_path=images, seg_map_path=masks),
                img_suffix=split.suffixes[0],
                seg_map_suffix=split.suffixes[1],
                metainfo=dict(classes=Code('classes')),
            )
        )
        for split, images, masks in pairs
    ]
    names = tuple(f'class{i}' for i in range(count_classes(train, val)))
    settings = [
        Setting('_base_', base_line(path, out)),
        *checkpoint_settings(weights),
        Setting('classes', names, 'The names of the values 0, 1, ... in the masks; rename them.'),
        Setting('data_root', root),
        Setting(
            'model',
            head_settings(arch, weights, base),
            f'in_channels are the channels of {", ".join(base.model.backbone.out_features)}.',
        ),
        Setting('train_dataloader', dict(batch_size=batch, **loaders[0])),
        Setting('val_dataloader', loaders[1]),
        Setting('test_dataloader', Code('val_dataloader')),
        *training_settings(recipe, base, arch, weights, len(train.names), gpus, batch),
    ]
    what = (
        f'{recipe.title} with ConvNeXt {arch} for {len(names)} classes, {len(train.names)} images.'
    )
    return header(what, weights) + '\n'.join(map(str, settings)) + '\n'


def head_settings(arch: str, weights: str | None, base: Config) -> dict:
    """The settings of backbone, neck and heads that depend on classes and architecture."""
    channels = map_channels(arch, base)
    model = normalization_settings(weights) | dict(backbone=backbone_settings(arch, weights))
    heads = [key for key in ('decode_head', 'auxiliary_head') if base.model.get(key)]
    for key in heads:
        model[key] = dict(num_classes=Code('len(classes)'))
    if 'neck' in base.model:
        return model | dict(neck=dict(in_channels=channels))
    for key in heads:
        index = base.model[key].in_index
        picked = channels[index] if isinstance(index, int) else [channels[i] for i in index]
        model[key] = dict(in_channels=picked, **model[key])
    return model
