"""Counts what COCO annotation files hold, and finds what is doubtful in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from own_data.foreign_formats import check_is_coco

from convnext_backbone.checkpoint.names import listed
from convnext_backbone.engine.coco_file import has_mask, is_outside, read_coco

# COCO's bounds of the area, in square pixels.
SMALL, MEDIUM = 32**2, 96**2

# mmdet trains on no image with a shorter side, in pixels.
MIN_SIDE = 32

# With fewer objects, a class is hardly learned.
FEW = 10


@dataclass
class Split:
    """The annotations of one split.

    Attributes:
        name: ``'train'`` or ``'val'``.
        file: The annotation file.
        folder: The folder of its images.
        content: The content of the file, as :func:`read_coco` returns it.
    """

    name: str
    file: Path
    folder: Path
    content: dict

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the categories, in the order of the file."""
        return tuple(category['name'] for category in self.content['categories'])

    @cached_property
    def objects(self) -> list[dict]:
        """The annotations that mmdet reads."""
        return [entry for entry in self.content['annotations'] if not entry.get('ignore')]

    @cached_property
    def instances(self) -> Counter:
        """The number of objects of each class."""
        names = {category['id']: category['name'] for category in self.content['categories']}
        return Counter(names.get(entry['category_id'], 'unknown') for entry in self.objects)

    @cached_property
    def unannotated(self) -> int:
        """The number of images without an object."""
        annotated = {entry['image_id'] for entry in self.objects}
        return sum(image['id'] not in annotated for image in self.content['images'])

    @cached_property
    def sizes(self) -> Counter:
        """The number of small, medium and large objects, by COCO's bounds."""
        areas = (entry['area'] for entry in self.objects)
        return Counter(
            'small' if area < SMALL else 'medium' if area < MEDIUM else 'large' for area in areas
        )

    @cached_property
    def outside(self) -> int:
        """The number of boxes that reach outside of their image."""
        sizes = {image['id']: (image['width'], image['height']) for image in self.content['images']}
        listed = (entry for entry in self.objects if entry['image_id'] in sizes)
        return sum(is_outside(entry['bbox'], *sizes[entry['image_id']]) for entry in listed)

    @cached_property
    def crowd(self) -> int:
        """The number of objects that are crowds."""
        return sum(bool(entry.get('iscrowd')) for entry in self.objects)

    @cached_property
    def missing(self) -> list[str]:
        """The listed images that do not exist."""
        names = [image['file_name'] for image in self.content['images']]
        return [name for name in names if not (self.folder / name).is_file()]

    @cached_property
    def without_mask(self) -> int:
        """The number of objects without a segmentation that mmdet takes."""
        return sum(not has_mask(entry) for entry in self.objects)

    @property
    def rows(self) -> dict[str, int]:
        """The counts, by what they are."""
        return {
            'images': len(self.content['images']),
            'images without annotation': self.unannotated,
            'missing image files': len(self.missing),
            'objects': len(self.objects),
            'small, below 32 x 32 pixels': self.sizes['small'],
            'medium, below 96 x 96': self.sizes['medium'],
            'large': self.sizes['large'],
            'crowds': self.crowd,
            'boxes that reach outside their image': self.outside,
            'objects without mask': self.without_mask,
        }


def read_split(name: str, file: Path, folder: Path) -> Split:
    """Reads the annotations of a split.

    Raises:
        FileNotFoundError: If the file or the folder does not exist.
        ValueError: If the file has another format or is damaged.
    """
    check_is_coco(file)
    if not folder.is_dir():
        raise FileNotFoundError(f'no such folder of images: {folder}')
    return Split(name, file, folder, read_coco(file))


def find_doubts(train: Split, val: Split) -> list[str]:
    """What is allowed, but often a mistake; one sentence each."""
    doubts = []
    for split in (train, val):
        absent = [name for name in split.classes if not split.instances[name]]
        use = 'nothing can learn it' if split is train else 'its AP cannot be measured'
        if absent:
            doubts.append(f'{split.name}: no object of {listed(absent, 10)}: {use}')
        if split.unannotated:
            doubts.append(
                f'{split.name}: {split.unannotated} images without annotation: are they empty, or '
                'were they forgotten?'
            )
        if split.outside:
            doubts.append(f'{split.name}: {split.outside} boxes reach outside their image')
        if split.instances['unknown']:
            doubts.append(
                f'{split.name}: {split.instances["unknown"]} objects have a category_id that is '
                'not in categories, and are left out'
            )
    tiny = sum(min(i['width'], i['height']) < MIN_SIDE for i in train.content['images'])
    if tiny:
        doubts.append(
            f'train: {tiny} images are less than {MIN_SIDE} pixels wide or high, and are left out '
            '(min_size in filter_cfg)'
        )
    few = [name for name in train.classes if 0 < train.instances[name] < FEW]
    if few:
        doubts.append(f'train: fewer than {FEW} objects of {listed(few, 10)}')
    if 2 * train.sizes['small'] > len(train.objects):
        doubts.append(
            'train: most objects are smaller than 32 x 32 pixels: larger images help '
            '(scale and scales in train_pipeline and test_pipeline)'
        )
    both = _paths(train) & _paths(val)
    if both:
        doubts.append(f'{len(both)} images are in train and val, such as {min(both)}')
    return doubts


def check_splits(train: Split, val: Split, with_masks: bool, box_heads: list[str]) -> None:
    """Refuses data on which a detector could not train, or would learn wrong labels.

    Args:
        train: The split to train on.
        val: The split to validate on.
        with_masks: Whether the head needs masks.
        box_heads: The heads that do not.

    Raises:
        FileNotFoundError: If images do not exist.
        ValueError: If the classes of the splits differ, if one has no objects, or if masks are
            needed and missing.
    """
    if train.classes != val.classes:
        only_train = [name for name in train.classes if name not in val.classes]
        only_val = [name for name in val.classes if name not in train.classes]
        difference = 'another order' if not (only_train or only_val) else ''
        difference += f' only train has {listed(only_train, 10)};' if only_train else ''
        difference += f' only val has {listed(only_val, 10)};' if only_val else ''
        raise ValueError(
            f'the categories of {train.file} and {val.file} differ: {difference.strip(" ;")}; '
            'their order decides the labels, so write the same list into both files'
        )
    for split in (train, val):
        if split.missing:
            raise FileNotFoundError(
                f'{len(split.missing)} of {len(split.content["images"])} images listed by '
                f'{split.file} are not in {split.folder}, such as {split.missing[0]}: give the '
                'folder to which file_name belongs, or remove them from the file'
            )
        if not split.objects:
            raise ValueError(
                f'{split.file} has no object of its categories: give the file with the annotations'
            )
        images = split.content['images']
        if split.unannotated == len(images):
            one, other = split.objects[0]['image_id'], images[0]['id']
            raise ValueError(
                f'{split.file} has objects, but none on its images: image_id of the annotations '
                f'and id of the images must be equal, such as {one!r} and {other!r}'
            )
        if with_masks and split.without_mask:
            raise ValueError(
                f'{split.without_mask} of {len(split.objects)} objects in {split.file} have no '
                'segmentation, or none with three points, which this head needs: choose --head '
                f'{" or ".join(box_heads)}'
            )


def _paths(split: Split) -> set[str]:
    return {str((split.folder / image['file_name']).resolve()) for image in split.content['images']}
