"""Compares the datasets of a config with their files and with the heads, before training starts.

The frameworks accept much that cannot be meant. mmdet drops annotations whose category is not among
the classes, and trains with a loss of 0 if none is left. If the classes have another order than the
annotation file, or one is missing there, labels get the names of other classes. An absent image is
noticed when its turn comes, possibly after days.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence

from mmengine import fileio
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

SPLITS = ('train', 'val', 'test')

# Of more images, this many, evenly spread, are looked up.
MAX_LOOKUPS = 10_000

# Boxes may reach this far outside of the image, in pixels: files round coordinates.
TOLERANCE = 1

# What mmdet reads of each object and image.
BOX_KEYS = ('image_id', 'category_id', 'bbox', 'area')
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')

# Heads that do not predict the classes of the dataset.
OTHER_HEADS = ('rpn_head', 'semantic_head')


def check_datasets(cfg: Config, splits: Sequence[str] = SPLITS) -> list[str]:
    """Checks the datasets of a config, also inside of wrappers such as ``RepeatDataset``.

    Datasets that are no ``BaseDataset`` are not checked. Of annotation files in other formats than
    COCO's, only their existence is.

    Args:
        cfg: A config with ``train_dataloader``, ``val_dataloader`` or ``test_dataloader``.
        splits: Which of them to check. Default: all.

    Returns:
        Warnings, one sentence each: boxes outside of their image, annotations that are left out.

    Raises:
        FileNotFoundError: If an annotation file, a folder or an image does not exist.
        ValueError: If an image is empty; if an annotation file is damaged or has no images or no
            objects; if it lacks a class or has another order of classes; if the splits have
            different classes; if a head has another number of classes.
    """
    warnings: list[str] = []
    classes: dict[str, tuple[str, ...]] = {}
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for split in splits:
            loader = cfg.get(f'{split}_dataloader') or {}
            for leaf in _leaves(loader.get('dataset') or {}):
                dataset = _build(registry, leaf)
                if dataset is None:
                    continue
                warnings += _check_dataset(dataset, leaf.get('pipeline') or [])
                if dataset.metainfo.get('classes') is not None:
                    classes[split] = tuple(dataset.metainfo['classes'])
            _check_evaluators(cfg.get(f'{split}_evaluator') or [])
    for split, names in classes.items():
        first, others = next(iter(classes.items()))
        if names != others:
            raise ValueError(
                f'the classes of {first} and {split} differ, {_short(others)} and {_short(names)}: '
                'set the same metainfo.classes in both'
            )
    if classes:
        _check_heads(cfg.get('model') or {}, len(others), 'model')
    return list(dict.fromkeys(warnings))


def _leaves(dataset: Mapping) -> Iterator[Mapping]:
    """The datasets inside of a wrapper, or the dataset itself."""
    inner = dataset.get('datasets', dataset.get('dataset'))
    if inner is None:
        yield dataset
    else:
        for part in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _leaves(part)


def _build(registry, dataset: Mapping) -> BaseDataset | None:
    """Builds a dataset, without reading its data; None if it is no ``BaseDataset``."""
    kind = dataset.get('type')
    found = registry.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(found, type) and issubclass(found, BaseDataset)):
        return None
    return registry.build({**dataset, 'lazy_init': True, 'pipeline': []})


def _check_dataset(dataset: BaseDataset, pipeline: Sequence[Mapping]) -> list[str]:
    backend = getattr(dataset, 'backend_args', None)
    loading = next((s for s in pipeline if str(s.get('type')).endswith('LoadAnnotations')), {})
    if not dataset.ann_file:
        infos = dataset.load_data_list()
        if not infos:
            raise FileNotFoundError(
                f'no images in {_folders(dataset)}: check data_root, data_prefix and the suffixes'
            )
        for key in ('img_path', 'seg_map_path') if loading else ('img_path',):
            paths = [info[key] for info in infos if info.get(key)]
            _check_files(paths, _folders(dataset), backend)
        return []
    if not fileio.exists(dataset.ann_file, backend_args=backend):
        raise FileNotFoundError(
            f'no annotation file {dataset.ann_file}: check data_root and ann_file in the config'
        )
    # Subclasses that read other formats replace this method.
    if type(dataset).load_data_list.__qualname__ != 'CocoDataset.load_data_list':
        return []
    content = _read_json(dataset.ann_file, backend)
    _check_images(dataset, content['images'], backend)
    _check_classes(dataset, content['categories'])
    return _check_objects(dataset, content, loading)


def _read_json(path: str, backend: dict | None) -> dict:
    try:
        content = json.loads(fileio.get_text(path, backend_args=backend))
    except ValueError as error:
        raise ValueError(f'{path} is not a complete JSON file ({error}): write it again') from error
    found = content if isinstance(content, dict) else {}
    lacking = [key for key in ('images', 'categories') if key not in found]
    if lacking:
        raise ValueError(f'{path} has no {" and no ".join(lacking)}: it must be in COCO format')
    return found


def _check_images(dataset: BaseDataset, images: list[dict], backend: dict | None) -> None:
    path = dataset.ann_file
    if not images:
        raise ValueError(f'{path} lists no images: there is nothing to train or test on')
    for image in images:
        lacking = [key for key in IMAGE_KEYS if key not in image]
        if lacking:
            raise ValueError(f'{path} has an image without {", ".join(lacking)}: {image}')
    if len({image['id'] for image in images}) < len(images):
        raise ValueError(f'{path} uses an image id twice: each image needs its own')
    folder = dataset.data_prefix.get('img', '')
    paths = [fileio.join_path(folder, image['file_name']) for image in images]
    _check_files(paths, path, backend)


def _check_files(paths: Sequence[str], source: str, backend: dict | None) -> None:
    """Checks that files exist and, on this machine, are not empty."""
    step = -(-len(paths) // MAX_LOOKUPS) or 1
    looked_up = paths[::step]
    absent = [p for p in looked_up if not fileio.exists(p, backend_args=backend)]
    if absent:
        raise FileNotFoundError(
            f'{len(absent)} of {len(looked_up)} files listed by {source} do not exist, such as '
            f'{absent[0]}: check data_root and data_prefix, or remove them from the list'
        )
    empty = [p for p in looked_up if os.path.isfile(p) and not os.path.getsize(p)]
    if empty:
        raise ValueError(
            f'{len(empty)} of {len(looked_up)} files listed by {source} are empty, such as '
            f'{empty[0]}: write them again, or remove them from the list'
        )


def _check_classes(dataset: BaseDataset, categories: list[dict]) -> None:
    path, classes = dataset.ann_file, dataset.metainfo.get('classes')
    if isinstance(classes, str) or not classes:
        raise ValueError(f'metainfo.classes must be a tuple of names, got {classes!r}')
    nameless = [category for category in categories if not {'id', 'name'} <= category.keys()]
    if nameless:
        raise ValueError(f'{path} has a category without id or name: {nameless[0]}')
    names = [category['name'] for category in categories]
    lacking = [name for name in classes if name not in names]
    if lacking:
        raise ValueError(
            f'{path} has no category {_short(lacking)}, it has {_short(names)}: '
            'set metainfo.classes to its categories'
        )
    ordered = [name for name in names if name in classes]
    if ordered != list(classes):
        raise ValueError(
            f'metainfo.classes has another order than the categories of {path}, which decide the '
            f'labels: set metainfo.classes to {_short(ordered)}'
        )


def _check_objects(dataset: BaseDataset, content: dict, loading: Mapping) -> list[str]:
    """Checks annotations against images and classes; returns warnings."""
    path, classes = dataset.ann_file, set(dataset.metainfo['classes'])
    objects = content.get('annotations') or []
    if any('segments_info' in entry for entry in objects):  # panoptic: no boxes of its own
        return []
    names = {category['id']: category['name'] for category in content['categories']}
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    unlisted, empty, outside, kept = [], [], [], 0
    left_out: dict[str, int] = {}
    for entry in objects:
        if entry.get('ignore'):
            continue
        lacking = [key for key in BOX_KEYS if key not in entry]
        if loading.get('with_mask') and not entry.get('segmentation'):
            lacking.append('segmentation')
        if lacking:
            raise ValueError(f'{path}: annotation {entry.get("id")} has no {", ".join(lacking)}')
        if not _is_box(entry['bbox']):
            raise ValueError(
                f'{path}: the bbox of annotation {entry.get("id")} must be [x, y, width, height], '
                f'got {entry["bbox"]}'
            )
        if entry['image_id'] not in sizes:
            unlisted.append(entry)
        elif names.get(entry['category_id']) not in classes:
            name = str(names.get(entry['category_id'], f'id {entry["category_id"]}'))
            left_out[name] = left_out.get(name, 0) + 1
        elif min(entry['bbox'][2:]) < 1 or entry['area'] <= 0:
            empty.append(entry)
        else:
            kept += 1
            if _is_outside(entry['bbox'], *sizes[entry['image_id']]):
                outside.append(entry)
    if not kept and not dataset.test_mode:
        raise ValueError(
            f'{path} has {len(objects)} annotations, but none of the classes {_short(classes)} on '
            'its images: training would learn nothing; check metainfo.classes and ann_file'
        )
    warnings = []
    if left_out:
        warnings.append(
            f'{path}: {sum(left_out.values())} of {len(objects)} annotations are left out, their '
            f'categories are not in metainfo.classes: {_short(left_out)}'
        )
    kinds = (
        (unlisted, 'are left out, their images are not listed'),
        (empty, 'are left out, they have no area or are narrower than a pixel'),
        (outside, 'reach outside their image'),
    )
    for found, what in kinds:
        if found:
            warnings.append(
                f'{path}: {len(found)} of {len(objects)} annotations {what}, such as annotation '
                f'{found[0].get("id")} of image {found[0]["image_id"]}, box {found[0]["bbox"]}'
            )
    return warnings


def _is_box(box: object) -> bool:
    numbers = [v for v in box if isinstance(v, (int, float))] if isinstance(box, list) else []
    return len(numbers) == 4 and all(map(math.isfinite, numbers))


def _is_outside(box: Sequence[float], width: int, height: int) -> bool:
    x, y, w, h = box
    low, right, bottom = -TOLERANCE, width + TOLERANCE, height + TOLERANCE
    return x < low or y < low or x + w > right or y + h > bottom


def _check_evaluators(evaluators: Mapping | Sequence[Mapping]) -> None:
    for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        path = evaluator.get('ann_file')
        if path and not fileio.exists(path, backend_args=evaluator.get('backend_args')):
            raise FileNotFoundError(f'no annotation file {path}: check ann_file of the evaluator')


def _check_heads(model: object, count: int, path: str) -> None:
    """Compares the number of classes of all heads in a model's config with that of the data."""
    if isinstance(model, (list, tuple)):
        for i, part in enumerate(model):
            _check_heads(part, count, f'{path}[{i}]')
    elif isinstance(model, Mapping):
        name = path.rpartition('.')[2].partition('[')[0]
        is_head = name.endswith('head') and name not in OTHER_HEADS
        for key in ('num_classes', 'num_labels'):
            if (is_head or key == 'num_labels') and model.get(key, count) != count:
                raise ValueError(
                    f'{path}.{key} is {model[key]}, but the datasets have {count} classes: '
                    f'set {path}.{key}={count}, or other metainfo.classes'
                )
        for key, part in model.items():
            _check_heads(part, count, f'{path}.{key}')


def _folders(dataset: BaseDataset) -> str:
    prefixes = [value for value in (dataset.data_prefix or {}).values() if value]
    return ', '.join(prefixes) or str(dataset.data_root)


def _short(names: Sequence[str] | set[str] | Mapping[str, object]) -> str:
    """A list of names, cut after the tenth."""
    listed = [str(name) for name in names]
    return ', '.join(listed[:10]) + (f' and {len(listed) - 10} more' if len(listed) > 10 else '')
