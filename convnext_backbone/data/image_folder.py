"""Images in folders that are named after their classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

SUFFIXES = ('.jpg', '.jpeg', '.png')


@DATASETS.register_module('ConvNextImageFolder')
class ImageFolder(BaseDataset):
    """Images ``data_root/class_name/*``, with suffix jpg, jpeg or png in upper or lower case.

    The label of an image is the position of its folder's name in sorted order, or in
    ``metainfo['classes']`` if given. Samples have ``img_path`` and ``gt_label``.

    Args:
        data_root: Folder that contains the folders of the classes.
        metainfo: ``dict(classes=...)`` sets the classes and their order, which must be the same for
            every split; other folders are left out. Default: None, all folders that are not hidden.
        **dataset_args: As in mmengine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If ``data_root`` is not a folder, contains no folders, or lacks one of
            ``metainfo['classes']``, or if there are no images in any of them.
        TypeError: If ``data_root`` is not a path or ``metainfo['classes']`` is a single text.
    """

    def __init__(self, data_root: str, metainfo: Mapping | None = None, **dataset_args) -> None:
        if not isinstance(data_root, (str, os.PathLike)):
            raise TypeError(f'data_root must be the path of a folder, got {data_root!r}')
        metainfo = dict(metainfo or {})
        if isinstance(metainfo.get('classes'), str):
            raise TypeError(
                f'metainfo["classes"] must be a list of names, got {metainfo["classes"]!r}'
            )
        metainfo.setdefault('classes', self._find_classes(Path(data_root)))
        super().__init__(data_root=data_root, data_prefix={}, metainfo=metainfo, **dataset_args)

    def load_data_list(self) -> list[dict]:
        """Lists the images of all classes, sorted by name in each class."""
        images, empty = [], []
        for label, name in enumerate(self.metainfo['classes']):
            folder = Path(self.data_root, name)
            if not folder.is_dir():
                raise FileNotFoundError(
                    f'the class {name!r} has no folder in {self.data_root}: '
                    'create it, or set other classes in metainfo'
                )
            paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
            images += [dict(img_path=str(path), gt_label=label) for path in paths]
            if not paths:
                empty.append(name)
        if not images:
            raise FileNotFoundError(
                f'no images in the {len(empty)} class folders of {self.data_root}: '
                f'files must end in {", ".join(SUFFIXES)}'
            )
        if empty:
            print_log(
                f'No images in the class folders {", ".join(empty)} of {self.data_root}',
                logger='current',
                level=logging.WARNING,
            )
        return images

    def get_cat_ids(self, idx: int) -> list[int]:
        """Returns the class of an image, for mmengine's ``ClassBalancedDataset``."""
        return [self.get_data_info(idx)['gt_label']]

    @staticmethod
    def _find_classes(root: Path) -> tuple[str, ...]:
        if not root.is_dir():
            raise FileNotFoundError(
                f'data_root {str(root)!r} is not a folder: set it to the folder with the classes'
            )
        classes = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != '.')
        if not classes:
            raise FileNotFoundError(
                f'no class folders in {root}: images must be in {root}/CLASS_NAME/'
            )
        return tuple(classes)
