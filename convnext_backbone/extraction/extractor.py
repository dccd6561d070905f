"""Feature maps and pooled vectors of images, from a checkpoint alone or through a config's neck."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..arch import resolve_arch
from ..checkpoint import infer_arch, load_checkpoint
from ..checkpoint.archives import first_line
from ..models import ConvNextBackbone, ConvNextModel
from ..models.checks import check_integer
from .preprocessing import (
    NORMALIZATIONS,
    Preprocessing,
    Size,
    check_size,
    is_pillow,
    normalization_of,
)

if TYPE_CHECKING:
    from .preprocessing import AnyImage

# Prepared images that wait for others of their shape, in batches.
MAX_WAITING = 8


class ImageFeatures(NamedTuple):
    """The features of one image.

    Attributes:
        maps: Feature maps ``(C, H, W)`` by name, such as ``'stage2'``; with ``pool`` one vector
            ``(C,)``, named ``'pooled'``. They are in float32 on the CPU.
        strides: Stride of each map in pixels of the resized image, by name.
        original_size: Height and width of the image in pixels.
        input_size: Height and width after resizing.
    """

    maps: dict[str, Tensor]
    strides: dict[str, int]
    original_size: tuple[int, int]
    input_size: tuple[int, int]


class FeatureExtractor:
    """Computes features of images: ``FeatureExtractor('tiny', checkpoint)(images)``.

    Args:
        arch: As in :class:`ConvNextBackbone`. Default: None, which infers it from the checkpoint.
        checkpoint: As the source of :func:`convnext_backbone.load_checkpoint`.
        out_features: Names of the feature maps. Default: None, all stages.
        pool: Whether to compute one vector per image instead: the mean of the last stage,
            normalised, as classifiers use it. Default: False.
        size: Pixels of the shorter side that images are resized to, a pair ``(height, width)``, or
            None, which keeps their size. Default: 800.
        normalization: ``'imagenet'`` or ``'clip'``. Default: None, which takes the checkpoint's
            kind: CLIP if its address or its key prefix says so, else ImageNet.
        device: Default: ``'cpu'``.
        amp: Whether to compute in half precision: float16 on a GPU, bfloat16 on a CPU.
            Default: False.

    Attributes:
        model: The network, in evaluation mode.
        preprocessing: How images are prepared.
        strides: Stride of each feature map, by name.

    Raises:
        ValueError, TypeError, FileNotFoundError, ImportError, OSError: As
            :func:`convnext_backbone.load_checkpoint` and :class:`ConvNextBackbone`, or if
            ``normalization`` is unknown, if ``out_features`` and ``pool`` are both given, or if the
            device cannot be used.
    """

    def __init__(
        self,
        arch: str | Mapping | None,
        checkpoint: str | Path | Mapping,
        *,
        out_features: Sequence[str] | None = None,
        pool: bool = False,
        size: Size = 800,
        normalization: str | None = None,
        device: str | torch.device = 'cpu',
        amp: bool = False,
    ) -> None:
        check_size(size)
        device = usable_device(device)
        if normalization is not None and normalization not in list(NORMALIZATIONS):
            raise ValueError(
                f'normalization must be one of {list(NORMALIZATIONS)}, got {normalization!r}'
            )
        if pool and out_features is not None:
            raise ValueError('pool=True gives one vector per image: leave out_features out')
        args = infer_arch(checkpoint)
        if arch is not None:
            args['arch'] = arch
        model: _Pooled | ConvNextBackbone
        if pool:
            model = _Pooled(**args)
            strides = {'pooled': model.stride}
        else:
            args.pop('layer_norm_eps', None)  # for the pooled norm alone
            stages = resolve_arch(args['arch']).stage_names[1:]
            model = ConvNextBackbone(
                **args, out_features=stages if out_features is None else out_features
            )
            strides = dict(zip(model.out_features, model.strides, strict=True))
        report = load_checkpoint(model, checkpoint)
        kind = normalization or normalization_of(report.source, report.prefix)
        self._start(model, device, amp)
        self.strides = strides
        mean, std = NORMALIZATIONS[kind]
        self.preprocessing = Preprocessing(kind, mean, std, size, max(strides.values()))

    @classmethod
    def from_config(
        cls,
        config: str | Path,
        checkpoint: str | Path,
        *,
        neck: bool = True,
        size: Size = 800,
        device: str | torch.device = 'cpu',
        amp: bool = False,
    ) -> FeatureExtractor:
        """Builds an extractor of the maps of a detector or segmentor: its neck's or backbone's.

        Args:
            config: Config of the model. Its ``data_preprocessor`` says how images are normalised.
            checkpoint: Checkpoint of the whole model, as ``tools/train.py`` writes it; without the
                neck also that of a backbone, as for the class.
            neck: Whether the maps are those of the neck, ``'level1'`` and so on, or those of the
                backbone, by stage name. Default: True.
            size: As in the class. Default: 800.
            device: As in the class. Default: ``'cpu'``.
            amp: As in the class. Default: False.

        Raises:
            FileNotFoundError: If the config or the checkpoint does not exist.
            ValueError: If the model has no neck, or no backbone of this package, if the
                checkpoint does not fit it, or if the device cannot be used.
            ImportError: If mmdet or mmseg, which the config needs, is not installed.
        """
        from .detectors import load_backbone, load_detector

        check_size(size)
        device = usable_device(device)
        load = load_detector if neck else load_backbone
        model, mean, std = load(config, checkpoint)
        extractor = cls.__new__(cls)
        extractor._start(model, device, amp)
        if isinstance(model, ConvNextBackbone):
            extractor.strides = dict(zip(model.out_features, model.strides, strict=True))
        else:
            side = 256  # a multiple of all strides
            with torch.no_grad():
                maps = extractor._compute(torch.zeros(1, 3, side, side))
            extractor.strides = {
                f'level{i}': side // features.shape[-1] for i, features in enumerate(maps, 1)
            }
        largest = max(extractor.strides.values())
        extractor.preprocessing = Preprocessing('config', mean, std, size, largest)
        return extractor

    def __call__(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 8
    ) -> list[ImageFeatures]:
        """Computes the features of images.

        Args:
            images: One image or several: paths, images of Pillow, or RGB arrays ``(H, W, 3)`` in
                uint8.
            batch_size: Images of the same shape that are computed together. Default: 8.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: As :meth:`Preprocessing.prepare`, or if ``batch_size`` is below 1.
            TypeError: If an image is something else, or ``batch_size`` is no integer.
        """
        single = isinstance(images, (str, Path, np.ndarray)) or is_pillow(images)
        many: Iterable = [images] if single else images  # type: ignore[assignment]
        prepared = ((i, self.preprocessing.prepare(image)) for i, image in enumerate(many))
        found = dict(self.extract(prepared, batch_size))
        return [found[i] for i in range(len(found))]

    def extract(
        self, prepared: Iterable[tuple[Any, tuple[Tensor, tuple[int, int]]]], batch_size: int = 8
    ) -> Iterator[tuple[Any, ImageFeatures]]:
        """Computes features in batches of equal shape, while images keep coming.

        Args:
            prepared: Pairs of any key and what :meth:`Preprocessing.prepare` returned.
            batch_size: Largest number of images in a batch. Default: 8.

        Yields:
            Pairs of the key and the features, in the order in which batches are full.

        Raises:
            ValueError: If ``batch_size`` is below 1.
            TypeError: If it is no integer.
        """
        check_integer('batch_size', batch_size, at_least=1)
        waiting: dict[torch.Size, list] = {}
        for key, (tensor, original_size) in prepared:
            group = waiting.setdefault(tensor.shape, [])
            group.append((key, tensor, original_size))
            if len(group) == batch_size:
                yield from self._features(waiting.pop(tensor.shape))
            elif sum(map(len, waiting.values())) >= MAX_WAITING * batch_size:
                yield from self._features(waiting.pop(max(waiting, key=lambda s: len(waiting[s]))))
        for group in waiting.values():
            yield from self._features(group)

    def _start(self, model: nn.Module, device: torch.device, amp: bool) -> None:
        self.model, self.device, self.amp = model, device, amp
        model.eval().requires_grad_(False).to(self.device)

    def _features(self, group: list) -> Iterator[tuple[Any, ImageFeatures]]:
        keys, tensors, sizes = zip(*group, strict=True)
        with torch.no_grad():
            maps = self._compute(torch.stack(tensors))
        for i, (key, original_size) in enumerate(zip(keys, sizes, strict=True)):
            named = {name: m[i] for name, m in zip(self.strides, maps, strict=True)}
            height, width = tensors[i].shape[1:]
            yield key, ImageFeatures(named, self.strides, original_size, (height, width))

    def _compute(self, images: Tensor) -> list[Tensor]:
        dtype = torch.bfloat16 if self.device.type == 'cpu' else torch.float16
        with torch.autocast(self.device.type, dtype, enabled=self.amp):
            maps = self.model(images.to(self.device))
        return [m.float().cpu() for m in maps]


def usable_device(device: str | torch.device) -> torch.device:
    """Returns a device on which tensors can be computed and read.

    Raises:
        ValueError: If there is no such device on this machine, or if it holds no values, as meta.
    """
    try:
        torch.zeros(1, device=device).cpu()
        return torch.device(device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(
            f'device {str(device)!r} cannot be used ({first_line(error)}): choose another, such as '
            'cpu'
        ) from error


class _Pooled(ConvNextModel):
    """Returns the pooled vectors as the only map."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(pixel_values).pooler_output,)
