"""Adapts the weight of a stem to other images: more or fewer channels, or smaller patches."""

from __future__ import annotations

import torch
from torch import Tensor

from .containers import CheckpointError


def can_be_adapted(weight: Tensor, own: Tensor) -> bool:
    """Whether the weight of a checkpoint's stem differs only in its channels or its patches.

    Args:
        weight: ``(O, I, Q, Q)`` in the checkpoint.
        own: ``(O, J, P, P)`` in the model.
    """
    if weight.layout != torch.strided or weight.ndim != 4:
        return False
    if weight.shape[0] != own.shape[0] or weight.shape == own.shape:
        return False
    channels, own_channels = weight.shape[1], own.shape[1]
    same_patches = weight.shape[2:] == own.shape[2:]
    return same_patches or (_multiple(weight, own) > 1 and channels in (own_channels, 3))


def adapt_stem(weight: Tensor, own: Tensor, model: str, is_allowed: bool) -> Tensor:
    """Adapts a weight for which :func:`can_be_adapted` holds.

    RGB weights are summed for one channel; for other numbers of channels they are tiled and scaled
    by 3 / channels. For patches whose side is k times smaller, each square of k x k weights is
    summed: the result is that of the original stem on images enlarged by k (nearest neighbour).

    Args:
        weight: The weight in the checkpoint.
        own: That of the model.
        model: Name of the model, for messages.
        is_allowed: Whether the model was built with ``adapt_stem=True``.

    Raises:
        CheckpointError: If this is not allowed, or if the checkpoint's images are not RGB.
    """
    given, wanted = weight.shape[1], own.shape[1]
    if given != wanted and not (is_allowed and given == 3):
        advice = f'pass num_channels={given} (adapt_stem needs a checkpoint with 3 channels)'
        if given == 3:
            advice = 'pass adapt_stem=True to sum or tile the weights of the stem'
        raise CheckpointError(
            f'the checkpoint is for images with {given} channels, {model} takes {wanted} and '
            f'keeps its weights: {advice}'
        )
    times = _multiple(weight, own)
    if times > 1 and not is_allowed:
        raise CheckpointError(
            f'the stem of the checkpoint has patches of {weight.shape[-1]} pixels, that of {model} '
            f'has {own.shape[-1]} and keeps its weights: pass adapt_stem=True to sum squares of '
            f'{times}x{times} weights, or patch_size={weight.shape[-1]}'
        )
    if wanted == 1 and given == 3:
        weight = weight.sum(dim=1, keepdim=True)
    elif given != wanted:
        weight = weight.repeat(1, -(-wanted // 3), 1, 1)[:, :wanted] * (3 / wanted)
    side = own.shape[-1]
    return weight.reshape(*weight.shape[:2], side, times, side, times).sum((3, 5))


def _multiple(weight: Tensor, own: Tensor) -> int:
    """How many times larger the checkpoint's patches are; 0 if this is not a whole number."""
    (height, width), side = weight.shape[2:], own.shape[-1]
    return height // side if height == width and height % side == 0 else 0
