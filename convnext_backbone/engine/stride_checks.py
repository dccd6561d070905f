"""Compares the heads of a model with the maps that they get: strides, numbers and channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..models.backbone import ConvNextBackbone

# The heads of mmdet that get all maps, the extractors that get the first ones, the heads of mmseg.
DENSE_HEADS = ('rpn_head', 'bbox_head')
EXTRACTORS = ('bbox_roi_extractor', 'mask_roi_extractor', 'grid_roi_extractor')
SEGMENTATION_HEADS = ('decode_head', 'auxiliary_head')

# The names that DDP, FSDP and torch.compile add.
WRAPPERS = ('module', '_fsdp_wrapped_module', '_orig_mod')

# Strides such as 550 / 69 are rounded, wrong ones differ by a factor of two.
TOLERANCE = 1.3


def check_strides(model: nn.Module) -> None:
    """Refuses heads whose anchors, points or regions would lie at wrong places of the image.

    The frameworks compare the strides of a head with nothing: with the maps of stage2 to stage4 and
    the anchors of stage1 to stage3, a detector trains on boxes of a wrong size and at wrong places.
    A forward pass of empty maps tells the strides after a neck.

    Args:
        model: A detector, a segmentor or any other model, wrapped or not. Only parts that have one
            of this package's backbones are checked.

    Raises:
        ValueError: If strides, or the number or channels of maps, do not fit; the message names the
            line to change.
    """
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        for name, part in model.named_modules():
            if isinstance(getattr(part, 'backbone', None), ConvNextBackbone):
                names = ['model', *(n for n in name.split('.') if n not in ('', *WRAPPERS))]
                _check_part(part, '.'.join(names))


def _check_part(part: Any, path: str) -> None:
    found = find_maps(part)
    if found is None:
        return
    channels, strides = found
    for name in DENSE_HEADS:
        for head in _modules(part, name):
            levels = getattr(getattr(head, 'prior_generator', None), 'strides', None)
            if levels is not None:
                _check_levels(f'{path}.{name}.{_stride_key(head)}', levels, strides)
    for name in EXTRACTORS:
        for extractor in _modules(getattr(part, 'roi_head', None), name):
            if hasattr(extractor, 'featmap_strides'):
                line = f'{path}.roi_head.{name}.featmap_strides'
                levels = extractor.featmap_strides
                _check_levels(line, levels, strides[: len(levels)])
    for name in SEGMENTATION_HEADS:
        for head in _modules(part, name):
            if hasattr(head, 'in_index'):
                _check_segmentation_head(head, f'{path}.{name}', channels, strides)


def _modules(owner: Any, name: str) -> Iterator[Any]:
    """A part of a model and all modules in it."""
    part = getattr(owner, name, None)
    if isinstance(part, nn.Module):
        yield from part.modules()


@torch.no_grad()
def find_maps(part: Any) -> tuple[list[int], list[int]] | None:
    """The channels and strides of the maps that the heads of a detector or segmentor get.

    Args:
        part: A module with a ``backbone`` of this package and maybe a ``neck``.

    Returns:
        Two lists with one entry per map; None if the neck needs more than maps. A neck that fails
        does so in the first iteration, too.
    """
    backbone, neck = part.backbone, getattr(part, 'neck', None)
    channels, strides = list(backbone.channels), list(backbone.strides)
    if neck is None:
        return channels, strides
    like = next(neck.parameters(), torch.zeros(()))
    side = 8 * max(strides)
    maps = tuple(
        like.new_zeros(1, count, side // stride, side // stride)
        for count, stride in zip(channels, strides, strict=True)
    )
    modes = {module: module.training for module in neck.modules()}
    try:
        # Batch norms must not learn from empty maps.
        outputs = neck.eval()(maps)
        return [m.shape[1] for m in outputs], [round(side / m.shape[3]) for m in outputs]
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode


def _stride_key(head: nn.Module) -> str:
    """The argument of a head that sets the strides of its points or anchors."""
    own = (key for key in ('strides', 'point_strides') if hasattr(head, key))
    return next(own, 'anchor_generator.strides')


def _check_levels(line: str, given: Sequence, expected: Sequence[int]) -> None:
    """Compares the strides of a head, numbers or pairs, with those of the maps."""
    levels = list(_axes(given))
    fits = len(levels) == len(expected) and all(
        1 / TOLERANCE < one / other < TOLERANCE
        for pair, other in zip(levels, expected, strict=True)
        for one in pair
    )
    if not fits:
        shown = [pair[0] if pair[0] == pair[1] else pair for pair in levels]
        raise ValueError(
            f'{line} is {shown}, but the maps have the strides {list(expected)}: '
            f'set {line}={list(expected)}, or other backbone.out_features'
        )


def _axes(strides: Sequence) -> Iterator[tuple[float, float]]:
    for stride in strides:
        yield tuple(stride) if isinstance(stride, (list, tuple)) else (stride, stride)


def _check_segmentation_head(head: Any, path: str, channels: list[int], strides: list[int]) -> None:
    indices = [head.in_index] if isinstance(head.in_index, int) else list(head.in_index)
    if not all(-len(channels) <= i < len(channels) for i in indices):
        raise ValueError(
            f'{path}.in_index is {head.in_index}, but there are {len(channels)} maps: '
            f'set indices below {len(channels)}, or other backbone.out_features'
        )
    expected = [channels[i] for i in indices]
    given = [head.in_channels] if isinstance(head.in_channels, int) else list(head.in_channels)
    if getattr(head, 'input_transform', None) == 'resize_concat':
        given, expected = [sum(given)], [sum(expected)]
    if given != expected:
        raise ValueError(
            f'{path}.in_channels is {head.in_channels}, but its maps have {expected} channels: '
            f'set {path}.in_channels={expected if len(expected) > 1 else expected[0]}'
        )
    levels = getattr(head, 'feature_strides', None)
    if levels is not None:
        # Only their ratios are used.
        scale = strides[indices[0]] / levels[0]
        _check_levels(
            f'{path}.feature_strides',
            [level * scale for level in levels],
            [strides[i] for i in indices],
        )
