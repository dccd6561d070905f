"""Features on disk: one file per image, or one memory-mapped array per stage for large folders.

Files are complete or absent: they are written beside their place and renamed. A folder also holds
``extraction.json``, which says how its features were made, so that a second run with other settings
is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap

from ..command_line import whole_file
from .extractor import ImageFeatures
from .preprocessing import Preprocessing

SETTINGS = 'extraction.json'


class Store(Protocol):
    """Where the features of images go."""

    def has(self, name: str) -> bool:
        """Whether the features of an image are complete."""

    def add(self, name: str, features: ImageFeatures) -> None:
        """Writes the features of an image."""


def check_settings(folder: Path, settings: Mapping) -> None:
    """Refuses a folder with features that were made in another way.

    Args:
        folder: The folder, which need not exist.
        settings: All that changes the features or their files, as JSON values.

    Raises:
        ValueError: If the settings in the folder are others.
    """
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f'{path} is damaged: choose another folder') from error
        differences = [
            f'{key} {found.get(key)!r}, not {settings.get(key)!r}'
            for key in sorted({*found, *settings})
            if found.get(key) != settings.get(key)
        ]
        if differences:
            raise ValueError(
                f'{folder} holds features with {"; ".join(differences)}: choose another folder, or '
                'delete this one'
            )


def claim_folder(folder: Path, settings: Mapping) -> None:
    """Notes how the features in a folder are made, unless it is noted already.

    Args:
        folder: The folder; it is created.
        settings: As in :func:`check_settings`, which comes first.

    Raises:
        OSError: If nothing can be written there.
    """
    path = folder / SETTINGS
    if not path.is_file():
        with whole_file(path) as part:
            part.write_text(json.dumps(settings, indent=2) + '\n')


class FileStore:
    """One file per image, ``NAME.npz``, ``NAME.safetensors`` or ``NAME.pt``.

    A file holds the maps by name and, as arrays of integers, ``strides`` (one per map, in the order
    of the names), ``original_size`` and ``input_size`` (height and width). ``mean`` and ``std`` are
    those that the image was normalised with, for RGB values from 0 to 1.

    Args:
        folder: The folder.
        suffix: ``'npz'``, ``'safetensors'`` or ``'pt'``.
        preprocessing: How the images are prepared.
    """

    def __init__(self, folder: Path, suffix: str, preprocessing: Preprocessing) -> None:
        self.folder, self.suffix, self.preprocessing = folder, suffix, preprocessing

    def path(self, name: str) -> Path:
        """Returns the file of an image."""
        return self.folder / f'{name}.{self.suffix}'

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def add(self, name: str, features: ImageFeatures) -> None:
        content = {key: m.contiguous() for key, m in features.maps.items()}
        for key, numbers in (
            ('strides', list(features.strides.values())),
            ('original_size', features.original_size),
            ('input_size', features.input_size),
            ('mean', self.preprocessing.mean),
            ('std', self.preprocessing.std),
        ):
            content[key] = torch.tensor(numbers)
        with whole_file(self.path(name)) as part:
            WRITERS[self.suffix](part, content)


class MemmapStore:
    """One array ``NAME.npy`` of shape ``(images, C, H, W)`` per feature map, for ``np.load(path,
    mmap_mode='r')``.

    ``images.json`` lists the images in the order of the arrays, ``original_size.npy`` has their
    heights and widths, and ``done.npy`` is 1 for the images whose features are written. Without
    features, nothing is written.

    Args:
        folder: The folder.
        names: The names of all images.

    Raises:
        ValueError: If the folder was begun for other images.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.index = {name: i for i, name in enumerate(names)}
        self.arrays: dict[str, np.memmap] = {}
        self.listing = folder / 'images.json'
        if self.listing.is_file() and json.loads(self.listing.read_text()) != list(names):
            raise ValueError(
                f'{self.listing} lists other images: the arrays have one place for each, so give '
                'the same images, or another folder'
            )

    def has(self, name: str) -> bool:
        begun = (self.folder / 'done.npy').is_file()
        return begun and bool(self._array('done', (), np.uint8)[self.index[name]])

    def add(self, name: str, features: ImageFeatures) -> None:
        place = self.index[name]
        if not self.listing.is_file():
            with whole_file(self.listing) as part:
                part.write_text(json.dumps(list(self.index), indent=0) + '\n')
        done = self._array('done', (), np.uint8)
        arrays = {key: m.numpy() for key, m in features.maps.items()}
        arrays['original_size'] = np.array(features.original_size)
        for key, values in arrays.items():
            array = self._array(key, values.shape, values.dtype)
            if array.shape[1:] != values.shape:
                raise ValueError(
                    f'{key} of {name} is of shape {values.shape} and that of other images '
                    f'{array.shape[1:]}: one array for all needs one size, such as --size 800 800'
                )
            array[place] = values
            array.flush()
        # Only now, so that an interrupted image is computed again.
        done[place] = 1
        done.flush()

    def _array(self, key: str, shape: tuple[int, ...], dtype) -> np.memmap:
        if key not in self.arrays:
            path = self.folder / f'{key}.npy'
            if not path.is_file():
                with whole_file(path) as part:
                    open_memmap(part, 'w+', dtype, (len(self.index), *shape)).flush()
            self.arrays[key] = open_memmap(path, 'r+')
        return self.arrays[key]


def _write_npz(path: Path, content: dict[str, torch.Tensor]) -> None:
    arrays = {key: tensor.numpy() for key, tensor in content.items()}
    np.savez(path, allow_pickle=False, **arrays)


def _write_safetensors(path: Path, content: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(content, path)


def _write_pt(path: Path, content: dict[str, torch.Tensor]) -> None:
    torch.save(content, path)


WRITERS: dict[str, Callable[[Path, dict[str, torch.Tensor]], None]] = {
    'npz': _write_npz,
    'safetensors': _write_safetensors,
    'pt': _write_pt,
}
