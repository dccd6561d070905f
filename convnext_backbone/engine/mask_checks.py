"""Compares the values in masks with the number of classes, as mmseg reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.registry import TRANSFORMS

from .image_checks import spread
from .model_checks import kind_of

# Of more masks, this many, evenly spread, are read.
MAX_MASKS = 200

# The packages whose transforms keep the values of masks as they are read.
FRAMEWORKS = ('mmcv', 'mmdet', 'mmengine', 'mmseg', 'convnext_backbone')


def keeps_values(pipeline: Sequence[Mapping]) -> bool:
    """Whether no step of a pipeline is the user's own, which could change the values of masks."""
    registries = TRANSFORMS, *TRANSFORMS.children.values()
    known = {name: kind for registry in registries for name, kind in registry.module_dict.items()}
    found = (known.get(kind_of(step)) for step in pipeline)
    return all(kind is None or kind.__module__.split('.')[0] in FRAMEWORKS for kind in found)


def check_masks(infos: Sequence[dict], loading: Mapping, count: int, ignored: int) -> None:
    """Checks the values in masks, after ``reduce_zero_label`` and ``label_map``.

    Args:
        infos: The entries of mmseg's dataset. Of more than ``MAX_MASKS``, only so many, evenly
            spread, are read.
        loading: The ``LoadAnnotations`` of its pipeline.
        count: The number of classes.
        ignored: The value of pixels without a class.

    Raises:
        ValueError: If a mask cannot be read, has several channels or values above 255, or if a
            value is neither that of a class nor ``ignored``.
    """
    # With one class, mmseg takes 0 for the background and 1 for the class.
    known = {*range(max(count, 2)), ignored}
    load = TRANSFORMS.build(dict(loading))
    chosen = spread(infos, MAX_MASKS)
    wrong = {}
    for info in chosen:
        path = info.get('seg_map_path')
        if path is None:
            raise ValueError('data_prefix needs seg_map_path, the folder of the masks, got None')
        try:
            mask = load(dict(info))['gt_seg_map']
        # With cv2, what cannot be read is None.
        except (OSError, AttributeError) as error:
            raise ValueError(f'cannot read the mask {path} ({error}): write it again') from error
        if mask.ndim != 2:
            raise ValueError(
                f'the mask {path} has several channels, an array of shape {mask.shape}: write '
                'masks with one channel that holds the number of the class of each pixel'
            )
        if loading.get('imdecode_backend', 'pillow') == 'pillow' and _loses_bits(path):
            raise ValueError(
                f'the mask {path} has values above 255, of which mmseg reads only 8 bits: '
                'write masks of 8 bits with the number of the class of each pixel'
            )
        if unknown := sorted({*np.unique(mask).tolist()} - known):
            wrong[path] = unknown
    if wrong:
        path, values = next(iter(wrong.items()))
        raise ValueError(
            f'{len(wrong)} of {len(chosen)} masks that were looked at have values that are neither '
            f'0 to {max(known - {ignored})} for the {count} classes nor {ignored} for ignored '
            f'pixels, such as {", ".join(map(str, values[:5]))} in {path}: write such values, or '
            'set metainfo.classes and num_classes of all heads to the classes of the masks'
            f'{_zero_hint(infos[0], values, count)}'
        )


def _loses_bits(path: str) -> bool:
    from PIL import Image  # which this package does not install

    if not os.path.isfile(path):
        return False
    with Image.open(path) as image:  # only the header, if it has 8 bits
        return image.mode.startswith('I') and np.asarray(image).max(initial=0) > 255


def _zero_hint(info: Mapping, values: Sequence[int], count: int) -> str:
    if info.get('reduce_zero_label') or values != [count]:
        return ''
    return '; or, if 0 means no class, set reduce_zero_label=True in the datasets'
