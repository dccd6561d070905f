"""Recognises relatives of ConvNeXt that this package does not build, by their tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .layouts import is_depthwise
from .names import parse_native


def foreign_parts(tensors: Mapping[str, Tensor]) -> list[str]:
    """Describes what no model of this package has.

    A file that lacks the bias of some blocks is damaged; these relatives have it in no block.

    Args:
        tensors: Tensors by native name, in native layout.

    Returns:
        One description each of another stem, kernel size or norm, and of convolutions without bias.
    """
    names = {parse_native(native): tensor for native, tensor in tensors.items()}
    leaves = {(name.part, name.leaf): tensor for name, tensor in names.items()}
    found = []
    stem, norm = leaves.get(('stem_conv', 'weight')), leaves.get(('stem_norm', 'weight'))
    # timm's stems have two convolutions of 3x3, and some an activation between them.
    is_first = norm is None and stem is not None and stem.shape[2:] == (3, 3)
    if is_first or (norm is not None and norm.ndim == 4):
        found.append('its stem is a stack of convolutions (overlapping stem)')
    sizes = {
        tensor.shape[-1]
        for name, tensor in names.items()
        if name.part == 'dwconv' and is_depthwise(tensor)
    }
    if others := sorted(sizes - {7}):
        sides = ', '.join(f'{side}x{side}' for side in others)
        found.append(f'it has depthwise convolutions of {sides}, not 7x7')
    if _lacks_bias(leaves, 'norm'):
        found.append('its norms have no bias (RMSNorm, or LayerNorm without bias)')
    if _lacks_bias(leaves, 'dwconv'):
        found.append('its convolutions have no bias')
    return found


def _lacks_bias(leaves: Mapping[tuple[str, str], Tensor], part: str) -> bool:
    return (part, 'weight') in leaves and (part, 'bias') not in leaves
