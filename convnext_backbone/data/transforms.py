"""The transforms of image classification that mmcv does not have."""

from __future__ import annotations

import math

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement

from ..models.checks import check_integer

META_KEYS = ('sample_idx', 'img_path', 'ori_shape', 'img_shape')


@TRANSFORMS.register_module('ConvNextRandomResizedCrop')
class RandomResizedCrop(BaseTransform):
    """Cuts a random rectangle out of an image and resizes it (Szegedy et al. 2015).

    Reads and writes ``img``, writes ``img_shape``.

    Args:
        scale: Side of the square result in pixels.
        area: Minimum and maximum share of the image's area to cut out. Default: (0.08, 1).
        ratio: Minimum and maximum of width / height of the rectangle, sampled on a log scale.
            Default: (3/4, 4/3).
        interpolation: As in ``mmcv.imresize``. Default: ``'bilinear'``.

    Raises:
        ValueError: If the side is below 1, or if ``area`` or ``ratio`` is not a range.
        TypeError: If the side is not an integer.
    """

    def __init__(
        self,
        scale: int,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = 'bilinear',
    ) -> None:
        check_integer('scale', scale, at_least=1)
        check_range('area', area, at_most=1)
        check_range('ratio', ratio)
        self.scale, self.area, self.ratio = scale, area, ratio
        self.interpolation = interpolation

    def transform(self, results: dict) -> dict:
        height, width = results['img'].shape[:2]
        rows, columns = random_rectangle(height, width, self.area, self.ratio)
        results['img'] = mmcv.imresize(
            results['img'][rows, columns],
            (self.scale, self.scale),
            interpolation=self.interpolation,
        )
        results['img_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module('ConvNextRandomErasing')
class RandomErasing(BaseTransform):
    """Replaces a random rectangle by noise (Zhong et al. 2017).

    Reads and writes ``img``. Every pixel is sampled independently from a normal distribution.

    Args:
        prob: Probability of erasing a rectangle. Default: 0.25.
        area: Minimum and maximum share of the image's area to erase. Default: (0.02, 1/3).
        ratio: Minimum and maximum of width / height of the rectangle, sampled on a log scale.
            Default: (0.3, 10/3).
        mean: Mean of the noise per channel. Default: the mean of ImageNet in BGR.
        std: Standard deviation of the noise per channel. Default: the one of ImageNet in BGR.

    Raises:
        ValueError: If the probability is not in [0, 1], or if ``area`` or ``ratio`` is not a range.
    """

    def __init__(
        self,
        prob: float = 0.25,
        area: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 10 / 3),
        mean: tuple[float, ...] = (103.53, 116.28, 123.675),
        std: tuple[float, ...] = (57.375, 57.12, 58.395),
    ) -> None:
        if not isinstance(prob, (int, float)) or not 0 <= prob <= 1:
            raise ValueError(f'prob must be a number in [0, 1], got {prob!r}')
        check_range('area', area, at_most=1)
        check_range('ratio', ratio)
        self.prob, self.area, self.ratio = prob, area, ratio
        self.mean, self.std = mean, std

    def transform(self, results: dict) -> dict:
        if np.random.rand() >= self.prob:
            return results
        image = results['img'].copy()
        height, width = image.shape[:2]
        rows, columns = random_rectangle(height, width, self.area, self.ratio)
        noise = np.random.normal(self.mean, self.std, image[rows, columns].shape)
        image[rows, columns] = noise.round().clip(0, 255)
        results['img'] = image
        return results


@TRANSFORMS.register_module('ConvNextPackInputs')
class PackInputs(BaseTransform):
    """The last transform of a pipeline: packs the image as a tensor and the rest as a data sample.

    Reads ``img``, ``(H, W, C)``, and if present ``gt_label`` and the keys of ``meta_keys``.
    Returns ``inputs``, ``(C, H, W)``, and ``data_samples``, a ``BaseDataElement``.

    Args:
        meta_keys: Keys of the sample's meta information. Default: index and path of the image, its
            shape in the file and its current shape.
    """

    def __init__(self, meta_keys: tuple[str, ...] = META_KEYS) -> None:
        self.meta_keys = meta_keys

    def transform(self, results: dict) -> dict:
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        sample = BaseDataElement(
            metainfo={key: results[key] for key in self.meta_keys if key in results}
        )
        if 'gt_label' in results:
            sample.gt_label = torch.as_tensor(results['gt_label'])
        return dict(inputs=torch.from_numpy(image), data_samples=sample)


def check_range(name: str, value: object, at_most: float = math.inf) -> None:
    """Refuses everything but two numbers, the smaller one first, both positive.

    Raises:
        ValueError: If the value is anything else, or if a number is above ``at_most``.
    """
    pair = value if isinstance(value, (tuple, list)) and len(value) == 2 else ()
    numbers = [v for v in pair if isinstance(v, (int, float))]
    if len(numbers) < 2 or not 0 < numbers[0] <= numbers[1] <= at_most:
        limit = '' if at_most == math.inf else f' <= {at_most}'
        raise ValueError(
            f'{name} must be (minimum, maximum) with 0 < minimum <= maximum{limit}, got {value!r}'
        )


def random_rectangle(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[slice, slice]:
    """Samples a rectangle of random area, proportions and position in an image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        area: Minimum and maximum share of the image's area.
        ratio: Minimum and maximum of width / height, sampled on a log scale.

    Returns:
        Rows and columns. If none of ten samples fits into the image, the largest rectangle with an
        allowed ratio.
    """
    for _ in range(10):
        pixels = np.random.uniform(*area) * height * width
        proportion = math.exp(np.random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = (
            max(1, round(math.sqrt(pixels / proportion))),
            max(1, round(math.sqrt(pixels * proportion))),
        )
        if rows <= height and columns <= width:
            break
    else:
        rows, columns = (min(height, round(width / ratio[0])), min(width, round(height * ratio[1])))
    top = np.random.randint(height - rows + 1)
    left = np.random.randint(width - columns + 1)
    return slice(top, top + rows), slice(left, left + columns)
