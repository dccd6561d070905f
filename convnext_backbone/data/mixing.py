"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of whole batches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torch.distributions import Beta

from ..models.checks import check_integer
from ..models.losses import SINGLE_LABEL, check_labels


@MODELS.register_module()
class MixingDataPreprocessor(ImgDataPreprocessor):
    """Normalises images, and in training mixes each image i with image N - 1 - i of the batch.

    Each batch is mixed either by mixup or by CutMix, with equal probability if both are on, and
    with one ratio ``lam`` for all images. Mixup computes ``lam * image + (1 - lam) * other``.
    CutMix pastes a rectangle of the other image with a share of ``1 - lam`` of the area. Data
    samples get the probability of each class as ``gt_score``.

    Args:
        num_labels: Number of classes.
        mixup_alpha: Mixup samples ``lam`` from Beta(alpha, alpha); 0 switches it off. Default: 0.
        cutmix_alpha: The same for CutMix. Default: 0.
        **normalize_args: As in mmengine's ``ImgDataPreprocessor``: ``mean``, ``std``,
            ``bgr_to_rgb``, ...

    Raises:
        ValueError: If an alpha is negative or not a finite number, if both are 0, or if
            ``num_labels`` is below 1; in training also if labels are out of range or have another
            shape.
        TypeError: If ``num_labels`` is not an integer; in training also if labels are not class
            indices.
    """

    def __init__(
        self,
        num_labels: int,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        **normalize_args,
    ) -> None:
        super().__init__(**normalize_args)
        check_integer('num_labels', num_labels, at_least=1)
        alphas = (mixup_alpha, cutmix_alpha)
        numbers = all(isinstance(a, (int, float)) and 0 <= a < math.inf for a in alphas)
        if not numbers or not any(alphas):
            raise ValueError(
                'mixup_alpha and cutmix_alpha must be finite numbers, must not be negative, and at '
                f'least one must be positive, got {mixup_alpha!r} and {cutmix_alpha!r}'
            )
        self.num_labels = num_labels
        ways = ((mixup, mixup_alpha), (cutmix, cutmix_alpha))
        self.ways = [(mix, Beta(alpha, alpha)) for mix, alpha in ways if alpha > 0]

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalises and stacks the images of a batch; in training, mixes them."""
        data = super().forward(data, training)
        if not training:
            return data
        samples = data['data_samples']
        labels = torch.stack([torch.as_tensor(sample.gt_label) for sample in samples])
        labels = check_labels(labels, len(samples), self.num_labels, SINGLE_LABEL)
        mix, distribution = self.ways[torch.randint(len(self.ways), ())]
        data['inputs'], lam = mix(data['inputs'], distribution.sample().item())
        targets = F.one_hot(labels, self.num_labels).to(data['inputs'].dtype)
        for sample, score in zip(samples, targets.lerp(targets.flip(0), 1 - lam), strict=True):
            sample.gt_score = score
        return data


def mixup(images: Tensor, lam: float) -> tuple[Tensor, float]:
    """Blends each image i with image N - 1 - i of the batch.

    Args:
        images: ``(N, C, H, W)``.
        lam: Weight of the image itself, in [0, 1].

    Returns:
        The blended images and ``lam``.
    """
    return images.lerp(images.flip(0), 1 - lam), lam


def cutmix(images: Tensor, lam: float) -> tuple[Tensor, float]:
    """Pastes a rectangle of image N - 1 - i of the batch into each image i.

    Args:
        images: ``(N, C, H, W)``.
        lam: Share of the area that an image should keep, in [0, 1]. The rectangle has the
            proportions of the image and a random centre. Parts outside the image are cut off.

    Returns:
        The mixed images, and the share of the area that they kept.
    """
    height, width = images.shape[2:]
    (top, bottom), (left, right) = (_interval(side, (1 - lam) ** 0.5) for side in (height, width))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _interval(side: int, share: float) -> tuple[int, int]:
    length = int(side * share)
    start = int(torch.randint(side, ())) - length // 2
    return max(start, 0), min(start + length, side)
