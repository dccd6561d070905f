"""From an image file to the tensor that a model takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    AnyImage = str | Path | Image.Image | np.ndarray

# Mean and standard deviation of RGB values from 0 to 1, by kind of pre-training.
NORMALIZATIONS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}

# A narrow image becomes very long when its shorter side is resized: sides of the resized image are
# at most this, in pixels.
MAX_SIDE = 32_768

Size = int | tuple[int, int] | None


class Preprocessing(NamedTuple):
    """How images are prepared.

    Attributes:
        name: ``'imagenet'``, ``'clip'`` or ``'config'``.
        mean: Mean of each RGB channel, for values from 0 to 1.
        std: Standard deviation of each RGB channel.
        size: Pixels of the shorter side after resizing, ``(height, width)``, or None to keep the
            size.
        stride: Largest stride of the model: a smaller image has no features.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: Size
    stride: int

    def prepare(self, image: AnyImage) -> tuple[Tensor, tuple[int, int]]:
        """Reads, resizes and normalises an image.

        Args:
            image: A path, an image of Pillow, or an RGB array ``(H, W, 3)`` in uint8.

        Returns:
            The tensor ``(3, H, W)`` in float32, and the image's original height and width.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If the image cannot be read or has no pixels, if it is smaller than
                ``stride``, or if a side would have more than ``MAX_SIDE`` pixels after resizing.
            TypeError: If ``image`` is something else.
        """
        rgb = open_image(image)
        if 0 in rgb.size:
            raise ValueError(f'an image of {rgb.height}x{rgb.width} pixels is empty')
        pixels = np.asarray(_resized(rgb, self.size), dtype=np.float32) / 255
        height, width, _ = pixels.shape
        if min(height, width) < self.stride:
            raise ValueError(
                f'an image of {height}x{width} pixels is smaller than the stride {self.stride}: '
                'choose a larger size, or feature maps with a smaller stride'
            )
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        normalised = ((pixels - mean) / std).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(normalised)), (rgb.height, rgb.width)


def normalization_of(checkpoint: str, prefix: str) -> str:
    """Returns the kind of pre-training of a checkpoint, a key of ``NORMALIZATIONS``.

    Args:
        checkpoint: Its path or address; those of timm and OpenCLIP have the word CLIP.
        prefix: Key prefix of the ConvNeXt in it; in CLIP's own models that is ``visual``.
    """
    has_word = re.search(r'(?<![a-z])(open)?clip(?![a-z])', checkpoint.lower())
    is_clip = has_word or 'visual' in prefix.split('.')
    return 'clip' if is_clip else 'imagenet'


def check_size(size: Size) -> None:
    """Checks a size.

    Raises:
        TypeError: If it is not an integer, a pair of integers or None.
        ValueError: If a number is below 1.
    """
    sides = size if isinstance(size, tuple) else () if size is None else (size,)
    if not all(type(side) is int for side in sides) or len(sides) > 2:
        raise TypeError(
            'size must be the pixels of the shorter side, (height, width), or None to keep the '
            f'size, got {size!r}'
        )
    if any(side < 1 for side in sides):
        raise ValueError(f'size must be positive, got {size!r}')


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file as RGB.

    The orientation in its metadata is applied, 16-bit values are scaled to 8 bits, grey becomes
    three equal channels, and transparency is ignored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable image.
        ImportError: If Pillow is not installed.
    """
    Image, ImageOps = _pillow()
    if not Path(path).is_file():
        raise FileNotFoundError(f'no such image: {path}')
    try:
        with Image.open(path) as file:
            return as_rgb(ImageOps.exif_transpose(file))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} is not a readable image: {error}') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB, as :func:`read_image` does.

    Raises:
        ValueError: If its pixels are floating-point numbers, which have no known range.
    """
    if image.mode == 'F':
        raise ValueError('its pixels are floating-point numbers: convert it to 8 or 16 bits')
    if image.mode.startswith('I'):
        # Pillow itself would clip 16-bit values to 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError('its pixels have more than 16 bits: convert it to 8 or 16 bits')
        image = _pillow()[0].fromarray((values / 257).round().astype(np.uint8))
    return image.convert('RGB')


def open_image(image: AnyImage) -> Image.Image:
    """Returns an image as RGB.

    Args:
        image: As in :meth:`Preprocessing.prepare`.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_image`.
        TypeError: If ``image`` is something else.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if is_pillow(image):
        return as_rgb(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return _pillow()[0].fromarray(image)
    what = type(image).__name__
    if isinstance(image, np.ndarray):
        what = f'an array of shape {image.shape} in {image.dtype}'
    raise TypeError(
        'an image must be a path, an image of Pillow or an RGB array (H, W, 3) in uint8, '
        f'got {what}'
    )


def is_pillow(image: object) -> TypeGuard[Image.Image]:
    """Whether something is an image of Pillow, which need not be installed."""
    return type(image).__module__.partition('.')[0] == 'PIL'


def _resized(image: Image.Image, size: Size) -> Image.Image:
    if size is None:
        return image
    if isinstance(size, tuple):
        height, width = size
    else:
        scale = size / min(image.size)
        width, height = (max(round(side * scale), 1) for side in image.size)
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f'an image of {image.height}x{image.width} pixels would have {height}x{width} after '
            f'resizing, but a side can have {MAX_SIDE} at most: choose a smaller size, or '
            '(height, width)'
        )
    return image.resize((width, height), _pillow()[0].Resampling.BICUBIC)


def _pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('reading images needs Pillow: pip install pillow') from error
    return Image, ImageOps
