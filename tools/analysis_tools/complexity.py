"""Counts the parameters, FLOPs and activations of a config's model.

    python tools/analysis_tools/complexity.py CONFIG [CONFIG ...] [--shape H W]

mmengine's counter is used: one multiply-add is one FLOP. The model is built on the meta device:
nothing is computed, allocated or downloaded, and the largest detector takes seconds. Only a model
with deformable attention must run on the CPU, which takes about half a minute.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path

import check_environment  # noqa: F401
import torch
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_backbone.command_line import read_config, usage_errors


class Inference(nn.Module):
    """The computation of a model for one image, up to predictions before decoding.

    A two-stage detector processes the maximum number of regions that its test settings allow: in
    mmdet's configs, 1000 proposals for each box head and 100 detections for each mask head.
    RoIAlign is not counted, as in the published tables.

    Args:
        model: A detector, segmentor or classifier (a ``BaseModel``), or any other module that
            takes images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> object:
        """Runs the model on images of shape ``(1, 3, H, W)``."""
        if not isinstance(self.model, BaseModel):
            return self.model(images)
        if hasattr(self.model, 'roi_head'):
            return self._run_two_stages(images)
        shape = tuple(images.shape[-2:])
        metainfo = dict(img_shape=shape, batch_input_shape=shape, ori_shape=shape, pad_shape=shape)
        return self.model(images, [BaseDataElement(metainfo=metainfo)], mode='tensor')

    def _run_two_stages(self, images: Tensor) -> list:
        roi_head, limits = self.model.roi_head, self.model.test_cfg
        maps = self.model.extract_feat(images)
        outputs = [self.model.rpn_head(maps)]
        branches = [(roi_head.bbox_roi_extractor, roi_head.bbox_head, limits.rpn.max_per_img)]
        if roi_head.with_mask:
            branches.append(
                (roi_head.mask_roi_extractor, roi_head.mask_head, limits.rcnn.max_per_img)
            )
        for extractors, heads, num_regions in branches:
            for extractor, head in zip(as_list(extractors), as_list(heads), strict=True):
                size = extractor.roi_layers[0].output_size
                outputs.append(head(images.new_empty(num_regions, extractor.out_channels, *size)))
        return outputs


def as_list(modules: nn.Module) -> list[nn.Module]:
    """The stages of a cascade, or the single module as a list."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


class OutsideOfTrace(TorchDispatchMode):
    """Runs the kernels of a traced model in a separate thread, which is not traced.

    The counter traces the model. During tracing, sizes are tensors. The meta device's kernels
    compute with sizes, and many of them are written in Python.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._convolution.default:
            func, args = torch.ops.aten.convolution.default, args[:9]
        return self._thread.submit(self._run, func, args, kwargs or {}).result()

    @staticmethod
    def _run(func, args, kwargs):
        with torch.inference_mode():
            return func(*args, **kwargs)


class ConvolutionsInTrace(TorchFunctionMode):
    """Replaces a convolution by the operator that the tracer records.

    The tracer ignores ``conv2d`` and records the ``_convolution`` that it calls. On the meta
    device, ``conv2d`` does not call it.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            return self._convolve(*args, **(kwargs or {}))
        if func is F.conv_transpose2d:
            return self._convolve_transposed(*args, **(kwargs or {}))
        if func in (F.conv1d, F.conv3d, F.conv_transpose1d, F.conv_transpose3d):
            raise NotImplementedError(f'{func.__name__} cannot be counted: only 2-D is supported')
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _convolve(features, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        window = _pair(stride), _pair(padding), _pair(dilation)
        flags = [False] * 4
        return torch._convolution(features, weight, bias, *window, False, (0, 0), groups, *flags)

    @staticmethod
    def _convolve_transposed(
        features, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    ):
        window = _pair(stride), _pair(padding), _pair(dilation)
        flags = [False] * 4
        return torch._convolution(
            features, weight, bias, *window, True, _pair(output_padding), groups, *flags
        )


def default_shape(cfg: Config) -> tuple[int, int]:
    """The image size that the papers' tables use for a config's model.

    Returns:
        Height and width in pixels: ``(800, 1280)`` for a detector, ``(c, 4 c)`` for a segmentor of
        crop size c, ``(224, 224)`` otherwise.
    """
    scope = cfg.get('default_scope')
    if scope == 'mmdet':
        return 800, 1280
    if scope == 'mmseg':
        return cfg.crop_size[0], 4 * cfg.crop_size[0]
    return 224, 224


def needs_numbers(model: nn.Module) -> bool:
    """Whether shapes in a model depend on tensor values, as in deformable attention."""
    names = {type(module).__name__ for module in model.modules()}
    return 'MultiScaleDeformableAttention' in names


def measure(cfg: Config, shape: tuple[int, int] | None = None) -> dict[str, int | float]:
    """Counts parameters, FLOPs and activations of a model for one image.

    Args:
        cfg: A config with a ``model``, such as those in ``configs/``.
        shape: Height and width of the image in pixels. Default: :func:`default_shape`.

    Returns:
        The numbers of ``params``, ``flops`` (multiply-adds) and ``activations`` (output elements of
        convolutions, linear layers and matrix products).
    """
    height, width = shape or default_shape(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    # Preprocessing is not counted, and mixing cannot be built on the meta device.
    model_cfg = {key: value for key, value in cfg.model.items() if key != 'data_preprocessor'}
    with torch.inference_mode(), ExitStack() as stack:
        stack.enter_context(torch.device('meta'))
        model = MODELS.build(deepcopy(model_cfg))
        if needs_numbers(model):
            stack.enter_context(torch.device('cpu'))
            model = MODELS.build(deepcopy(model_cfg))
        images = torch.zeros(1, 3, height, width)
        if images.is_meta:
            stack.enter_context(OutsideOfTrace())
            stack.enter_context(ConvolutionsInTrace())
        found = get_model_complexity_info(
            Inference(revert_sync_batchnorm(model)).eval(),
            inputs=(images,),
            show_table=False,
            show_arch=False,
        )
    return {key: found[key] for key in ('params', 'flops', 'activations')}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='image size (default: 800 1280 for detectors, 512 2048 or 640 2560 by crop size '
        'for segmentors, 224 224 for classifiers and backbones)',
    )
    args = parser.parse_args()
    if args.shape and min(args.shape) < 1:
        parser.error(f'--shape must be positive, got {args.shape}')
    with usage_errors(parser):
        cfgs = [read_config(config) for config in args.configs]
        for config, cfg in zip(args.configs, cfgs, strict=True):
            if 'model' not in cfg:
                raise ValueError(f'{config} has no model: choose a whole config')
    # mmengine's counter warns about every operator and module that it does not count.
    MMLogger.get_instance('mmengine', log_level='ERROR')
    table = Table()
    for column in ('config', 'image', 'params', 'FLOPs', 'activations'):
        is_name = column == 'config'
        table.add_column(column, justify='left' if is_name else 'right', overflow='fold')
    for config, cfg in zip(args.configs, cfgs, strict=True):
        height, width = args.shape or default_shape(cfg)
        with usage_errors(parser, of_checkers=True):
            found = measure(cfg, (height, width))
        table.add_row(
            Path(config).stem,
            f'{height} x {width}',
            f'{found["params"] / 1e6:.2f} M',
            f'{found["flops"] / 1e9:.2f} G',
            f'{found["activations"] / 1e6:.1f} M',
        )
    Console().print(table)


if __name__ == '__main__':
    main()
