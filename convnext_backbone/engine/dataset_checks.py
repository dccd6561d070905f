"""Compares the datasets of a config with their files and with the heads, before training starts.

The frameworks accept many mistakes. mmdet drops annotations whose category is not among
the classes, and trains with a loss of 0 if none is left. If the classes have another order than the
annotation file, or one is missing there, labels get the names of other classes. An absent image is
noticed when its turn comes, possibly after days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmengine import fileio
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..checkpoint.names import listed
from .coco_file import (
    check_run_lengths,
    has_mask,
    has_short_polygon,
    is_outside,
    read_coco,
)
from .evaluator_checks import check_crowds, check_evaluators
from .image_checks import check_files, check_headers
from .mask_checks import check_masks, keeps_values
from .model_checks import check_classes, kind_of

SPLITS = ('train', 'val', 'test')


def check_datasets(cfg: Config, splits: Sequence[str] = SPLITS) -> list[str]:
    """Checks the datasets of a config, also inside of wrappers such as ``RepeatDataset``.

    Datasets that are no ``BaseDataset`` are not checked. Of annotation files in other formats than
    COCO's, only their existence is. Of many files, only some, evenly spread, are looked at: the
    existence of 10,000, the headers of 1000 images, the values of 200 masks.

    Args:
        cfg: A config with ``train_dataloader``, ``val_dataloader`` or ``test_dataloader``.
        splits: Which of them to check. Default: all.

    Returns:
        Warnings, one sentence each: boxes outside of their image, annotations that are left out,
        images of another size than the annotation file says, polygons of fewer than three points.

    Raises:
        FileNotFoundError: If an annotation file, a folder or an image does not exist.
        ValueError: If a file is empty or no image; if an annotation file is damaged or has no
            images or no objects, or if ``filter_cfg`` leaves none; if it lacks a class or has
            another order of classes; if an evaluator reads another annotation file; if masks have
            values without a class; if the splits have different classes; if a head has another
            number of classes.
        TypeError: If ``data_prefix`` is no dict.
    """
    warnings: list[str] = []
    classes: dict[str, tuple[str, ...]] = {}
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for split in splits:
            outer = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
            evaluators = cfg.get(f'{split}_evaluator') or []
            all_evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
            judged_dataset = None
            for leaf in _leaves(outer):
                dataset = _build(registry, leaf)
                if dataset is None:
                    continue
                pipeline = leaf.get('pipeline') or []
                warnings += _check_dataset(
                    dataset,
                    pipeline,
                    cfg.get('model') or {},
                    any(e.get('ann_file') and not e.get('format_only') for e in all_evaluators),
                )
                if dataset.metainfo.get('classes') is not None:
                    classes[split] = tuple(dataset.metainfo['classes'])
                if leaf is outer and _is_coco(dataset):
                    judged_dataset = dataset
            check_evaluators(evaluators, split, judged_dataset)
    for split, names in classes.items():
        first, others = next(iter(classes.items()))
        if names != others:
            raise ValueError(
                f'the classes of {first} and {split} differ, {listed(others, 10)} and '
                f'{listed(names, 10)}: set the same metainfo.classes in both'
            )
    if classes:
        check_classes(cfg.get('model') or {}, len(others))
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
    prefix = dataset.get('data_prefix', {})
    if not isinstance(prefix, Mapping):
        raise TypeError(
            "data_prefix must be a dict, such as dict(img='train/') for mmdet, or dict(img_path="
            f"'train/', seg_map_path='masks/') for mmseg, got {prefix!r}"
        )
    return registry.build({**dataset, 'lazy_init': True, 'pipeline': []})


def _is_coco(dataset: BaseDataset) -> bool:
    # Subclasses that read other formats replace this method.
    return type(dataset).load_data_list.__qualname__ == 'CocoDataset.load_data_list'


def _check_dataset(
    dataset: BaseDataset, pipeline: Sequence[Mapping], model: Mapping, is_judged_by_file: bool
) -> list[str]:
    backend = getattr(dataset, 'backend_args', None)
    image_loading = _step(pipeline, 'LoadImageFromFile')
    loading = _step(pipeline, 'LoadAnnotations')
    if dataset.ann_file and not fileio.exists(dataset.ann_file, backend_args=backend):
        raise FileNotFoundError(
            f'no annotation file {dataset.ann_file}: check data_root and ann_file in the config'
        )
    has_masks = 'seg_map_path' in (dataset.data_prefix or {})  # mmseg's
    if has_masks or not dataset.ann_file:
        infos = dataset.load_data_list()
        if not infos:
            raise FileNotFoundError(
                f'no images in {_folders(dataset)}: check data_root, data_prefix and the suffixes'
            )
        for key in ('img_path', 'seg_map_path') if loading else ('img_path',):
            paths = [info[key] for info in infos if info.get(key)]
            check_files(paths, _folders(dataset), backend)
            if key == 'img_path':
                check_headers(paths, _folders(dataset), image_loading)
        if has_masks and loading and keeps_values(pipeline):
            _check_masks(dataset, infos, loading, model)
        return []
    if not _is_coco(dataset):
        return []
    if dataset.data_prefix.get('img') is None:
        raise ValueError(
            'data_prefix needs img, the folder of the images, such as '
            f"data_prefix=dict(img='train/'), got {dataset.data_prefix}"
        )
    content = read_coco(dataset.ann_file, backend)
    images, folder = content['images'], dataset.data_prefix['img']
    paths = [fileio.join_path(folder, image['file_name']) for image in images]
    check_files(paths, dataset.ann_file, backend)
    sizes = [(image['width'], image['height']) for image in images]
    warnings = check_headers(paths, dataset.ann_file, image_loading, sizes)
    _check_classes(dataset, content['categories'])
    warnings += _check_objects(dataset, content, loading)
    if loading.get('with_mask'):
        check_run_lengths(dataset.ann_file, content)
    if is_judged_by_file:
        check_crowds(dataset, content)
    _check_filter(dataset, content)
    return warnings


def _step(pipeline: Sequence[Mapping], kind: str) -> Mapping:
    """The first step of a kind in a pipeline; empty if there is none."""
    return next((step for step in pipeline if kind_of(step) == kind), {})


def _check_masks(
    dataset: BaseDataset, infos: Sequence[dict], loading: Mapping, model: Mapping
) -> None:
    heads = model.get('decode_head') or {}
    head = heads if isinstance(heads, Mapping) else heads[-1]
    classes = dataset.metainfo.get('classes')
    count = len(classes) if classes else head.get('num_classes')
    if count:
        check_masks(infos, loading, count, head.get('ignore_index', 255))


def _check_classes(dataset: BaseDataset, categories: list[dict]) -> None:
    path, classes = dataset.ann_file, dataset.metainfo.get('classes')
    if isinstance(classes, str) or not classes:
        raise ValueError(f'metainfo.classes must be a tuple of names, got {classes!r}')
    names = [category['name'] for category in categories]
    lacking = [name for name in classes if name not in names]
    if lacking:
        raise ValueError(
            f'{path} has no category {listed(lacking, 10)}, it has {listed(names, 10)}: '
            'set metainfo.classes to its categories'
        )
    ordered = [name for name in names if name in classes]
    if ordered != list(classes):
        raise ValueError(
            f'metainfo.classes has another order than the categories of {path}, which decide the '
            f'labels: set metainfo.classes to {listed(ordered, 10)}'
        )


def _check_objects(dataset: BaseDataset, content: dict, loading: Mapping) -> list[str]:
    """Checks annotations against images and classes; returns warnings."""
    path, classes = dataset.ann_file, set(dataset.metainfo['classes'])
    objects = content['annotations']
    if any('segments_info' in entry for entry in objects):  # panoptic: no boxes of its own
        return []
    names = {category['id']: category['name'] for category in content['categories']}
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    unlisted, empty, outside, short, maskless, kept = [], [], [], [], [], 0
    left_out: dict[str, int] = {}
    for entry in objects:
        if entry.get('ignore'):
            continue
        if loading.get('with_mask'):
            if not has_mask(entry):
                maskless.append(entry)
            elif has_short_polygon(entry):
                short.append(entry)
        if entry['image_id'] not in sizes:
            unlisted.append(entry)
        elif names.get(entry['category_id']) not in classes:
            name = str(names.get(entry['category_id'], f'id {entry["category_id"]}'))
            left_out[name] = left_out.get(name, 0) + 1
        elif min(entry['bbox'][2:]) < 1 or entry['area'] <= 0:
            empty.append(entry)
        else:
            kept += 1
            if is_outside(entry['bbox'], *sizes[entry['image_id']]):
                outside.append(entry)
    if maskless:
        raise ValueError(
            f'{path}: {len(maskless)} of {len(objects)} annotations have no segmentation, or none '
            f'with three points, which the masks need, such as annotation {maskless[0]["id"]}: '
            'choose a detector without masks, or annotate them'
        )
    if not kept and not dataset.test_mode:
        raise ValueError(
            f'{path} has {len(objects)} annotations, but none of the classes {listed(classes, 10)} '
            'on its images: training would learn nothing; check metainfo.classes and ann_file'
        )
    warnings = []
    if left_out:
        warnings.append(
            f'{path}: {sum(left_out.values())} of {len(objects)} annotations are left out, their '
            f'categories are not in metainfo.classes: {listed(left_out, 10)}'
        )
    kinds = (
        (unlisted, 'are left out, their images are not listed'),
        (empty, 'are left out, they have no area or are narrower than a pixel'),
        (outside, 'reach outside their image'),
        (short, 'have polygons of fewer than three points, which mmdet leaves out'),
    )
    for found, what in kinds:
        if found:
            warnings.append(
                f'{path}: {len(found)} of {len(objects)} annotations {what}, such as annotation '
                f'{found[0].get("id")} of image {found[0]["image_id"]!r}, box {found[0]["bbox"]}'
            )
    return warnings


def _check_filter(dataset: BaseDataset, content: dict) -> None:
    """Refuses a ``filter_cfg`` that leaves no image to train on."""
    settings = dataset.filter_cfg or {}
    if dataset.test_mode or type(dataset).filter_data.__qualname__ != 'CocoDataset.filter_data':
        return
    images, smallest = content['images'], settings.get('min_size', 0)
    left = {i['id'] for i in images if min(i['width'], i['height']) >= smallest}
    if settings.get('filter_empty_gt'):
        names = {category['id']: category['name'] for category in content['categories']}
        classes = dataset.metainfo['classes']
        left &= {
            entry['image_id']
            for entry in content['annotations']
            if names.get(entry['category_id']) in classes
        }
    if not left:
        raise ValueError(
            f'filter_cfg of the dataset leaves none of {len(images)} images of {dataset.ann_file}, '
            f'it is {dict(settings)}: set a smaller min_size (pixels of the shorter side)'
        )


def _folders(dataset: BaseDataset) -> str:
    prefixes = [value for value in (dataset.data_prefix or {}).values() if value]
    return ', '.join(prefixes) or str(dataset.data_root)
