"""Compares the parts of a model's config: numbers of classes, channels of the backbone's maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..models.backbone import ConvNextBackbone

# Heads that do not predict the classes of the dataset.
OTHER_HEADS = ('rpn_head', 'semantic_head')

# Parts that get the backbone's maps in the order of its ``out_features``, if they are there.
READERS = ('neck', 'panoptic_head')


def check_classes(model: Mapping, count: int) -> None:
    """Compares the numbers of classes of all heads with that of the datasets.

    Args:
        model: The model's config.
        count: The number of classes of the datasets.

    Raises:
        ValueError: If a head has another number; the message names its line.
    """
    for path, part in _parts(model, 'model'):
        name = path.rpartition('.')[2].partition('[')[0]
        is_head = name.endswith('head') and name not in OTHER_HEADS
        for key in ('num_classes', 'num_labels'):
            if (is_head or key == 'num_labels') and part.get(key, count) != count:
                raise ValueError(
                    f'{path}.{key} is {part[key]}, but the datasets have {count} classes: '
                    f'set {path}.{key}={count}, or other metainfo.classes'
                )
        things, stuff = part.get('num_things_classes'), part.get('num_stuff_classes')
        if things is not None and stuff is not None and things + stuff != count:
            raise ValueError(
                f'{path} has num_things_classes={things} and num_stuff_classes={stuff}, but the '
                f'datasets have {count} classes: set numbers that add up to {count}'
            )


def check_channels(model: Mapping) -> None:
    """Compares the ``in_channels`` of necks with the channels of the backbone's maps.

    Models without one of this package's backbones are not checked.

    Args:
        model: The model's config.

    Raises:
        ValueError: If they differ; the message has the numbers and their line.
    """
    for path, part in _parts(model, 'model'):
        backbone = part.get('backbone')
        reader = next((key for key in READERS if part.get(key)), None)
        if reader is None or not isinstance(backbone, Mapping):
            continue
        if kind_of(backbone) != ConvNextBackbone.__name__:
            continue
        line, neck = f'{path}.{reader}', part[reader]
        if isinstance(neck, (list, tuple)):
            line, neck = f'{line}[0]', neck[0]
        if 'in_channels' not in neck:
            continue
        given = neck['in_channels']
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        with torch.device('meta'):
            built = ConvNextBackbone(**{k: v for k, v in backbone.items() if k != 'type'})
        # Some necks take the deepest map first, or that map alone.
        if given not in (built.channels, built.channels[::-1], built.channels[-1:]):
            raise ValueError(
                f'{line}.in_channels is {given}, but the backbone returns '
                f'{", ".join(built.out_features)} with {built.channels} channels: '
                f'set {line}.in_channels={built.channels}, or another {path}.backbone.out_features'
            )


def kind_of(part: Mapping) -> str:
    """The name of the class of a part of a config, without its scope."""
    kind = part.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition('.')[2]


def _parts(model: object, path: str) -> Iterator[tuple[str, Mapping]]:
    """All dicts in a config, with their paths."""
    if isinstance(model, (list, tuple)):
        for i, part in enumerate(model):
            yield from _parts(part, f'{path}[{i}]')
    elif isinstance(model, Mapping):
        yield path, model
        for key, part in model.items():
            yield from _parts(part, f'{path}.{key}')
