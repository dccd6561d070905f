"""Recognises relatives of ConvNeXt by their tensors: those that can be built, and the others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..arch import Variant, one_or_per_stage
from .layouts import is_depthwise
from .names import parse_native

# The kinds of norms without bias. Their tensors are the same.
WITHOUT_BIAS = ('rmsnorm', 'simplenorm')
UNCLEAR_NORM = ' or '.join(WITHOUT_BIAS)


def read_variant(tensors: Mapping[str, Tensor], norm: str | None = None) -> Variant:
    """Reads the kernel size, the stem and the norm of a checkpoint.

    A file that lacks the bias of some blocks is damaged; these relatives have it in no block.

    Args:
        tensors: Tensors by native name, in native layout.
        norm: The kind of norms without bias, if it is known. Default: None.
    """
    leaves = _leaves(tensors)
    kind = 'layernorm'
    if _lacks_bias(leaves, 'norm'):
        kind = norm if norm in WITHOUT_BIAS else UNCLEAR_NORM
    sizes = _kernel_sizes(tensors)
    stages = range(max(sizes, default=-1) + 1)
    # Of a damaged stage, the size of its first block.
    kernel_size = one_or_per_stage([sizes.get(i, [7])[0] for i in stages])
    return Variant(kernel_size, _stem(leaves), kind)


def foreign_parts(tensors: Mapping[str, Tensor]) -> list[str]:
    """Describes what no model of this package has.

    Args:
        tensors: Tensors by native name, in native layout.

    Returns:
        One description each of another stem or other kernels, and of convolutions without bias.
    """
    leaves = _leaves(tensors)
    found = []
    stem, norm = leaves.get(('stem_conv', 'weight')), leaves.get(('stem_norm', 'weight'))
    is_first = norm is None and stem is not None and stem.shape[2:] == (3, 3)
    if is_first or (norm is not None and norm.ndim == 4):
        found.append('its stem is a stack of convolutions, but not one that timm has')
    for stage, sizes in _kernel_sizes(tensors).items():
        if len(set(sizes)) > 1 or sizes[0] % 2 == 0:
            sides = ', '.join(f'{side}x{side}' for side in sorted(set(sizes)))
            found.append(
                f'the depthwise convolutions of its stage {stage + 1} are {sides}, but a stage has '
                'one odd size'
            )
    if _lacks_bias(leaves, 'dwconv'):
        found.append('its convolutions have no bias')
    return found


def _leaves(tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    names = {parse_native(native): tensor for native, tensor in tensors.items()}
    return {(name.part, name.leaf): tensor for name, tensor in names.items()}


def _lacks_bias(leaves: Mapping[tuple[str, str], Tensor], part: str) -> bool:
    return (part, 'weight') in leaves and (part, 'bias') not in leaves


def _kernel_sizes(tensors: Mapping[str, Tensor]) -> dict[int, list[int]]:
    """The sides of the depthwise convolutions of each stage."""
    sizes: dict[int, list[int]] = {}
    for native, tensor in tensors.items():
        name = parse_native(native)
        if name.part == 'dwconv' and name.stage is not None and is_depthwise(tensor):
            sizes.setdefault(name.stage, []).append(tensor.shape[-1])
    return sizes


def _stem(leaves: Mapping[tuple[str, str], Tensor]) -> str:
    if ('overlap_act_conv2', 'weight') in leaves:
        return 'overlap_act'
    if ('overlap_conv1', 'weight') not in leaves:
        return 'patch'
    second = leaves.get(('overlap_conv2', 'weight'))
    is_tiered = second is not None and second.ndim == 4 and second.shape[0] != second.shape[1]
    return 'overlap_tiered' if is_tiered else 'overlap'
