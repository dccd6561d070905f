"""The architectures of the ConvNeXt family, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arch:
    """Depths and widths of the stages, and whether the blocks are those of ConvNeXt V2."""

    depths: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    use_grn: bool = False


# ConvNeXt, section 3 and its official repository; ConvNeXt V2, appendix A. The four smallest
# V1 models are V2's shapes with V1's blocks.
_SHAPES = {
    'atto': ((2, 2, 6, 2), (40, 80, 160, 320)),
    'femto': ((2, 2, 6, 2), (48, 96, 192, 384)),
    'pico': ((2, 2, 6, 2), (64, 128, 256, 512)),
    'nano': ((2, 2, 8, 2), (80, 160, 320, 640)),
    'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
    'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
    'base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
    'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
    'xlarge': ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    'huge': ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}
_V1 = ('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base', 'large', 'xlarge')
_V2 = ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')

ARCHS = {
    **{name: Arch(*_SHAPES[name]) for name in _V1},
    **{f'v2-{name}': Arch(*_SHAPES[name], use_grn=True) for name in _V2},
}


def resolve_arch(arch: str | Mapping, use_grn: bool | None = None) -> Arch:
    """Looks an architecture up, or reads it from ``dict(depths=..., hidden_sizes=...)``.

    Args:
        arch: The name, or the dict.
        use_grn: Whether the blocks are those of ConvNeXt V2. Default: None, as the name says; those
            of a dict are V1's.

    Raises:
        ValueError: If the name is unknown, if the dict has other keys, or if its two lists differ
            in length, are empty or hold anything but positive integers.
        TypeError: If ``arch`` is neither a name nor a dict.
    """
    architecture = _look_up(arch)
    return architecture if use_grn is None else replace(architecture, use_grn=use_grn)


def _look_up(arch: str | Mapping) -> Arch:
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'unknown arch {arch!r}: choose one of {", ".join(ARCHS)}, '
                'or pass dict(depths=..., hidden_sizes=...)'
            )
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(
            f'arch must be a name or dict(depths=..., hidden_sizes=...), got {type(arch).__name__}'
        )
    if set(arch) != {'depths', 'hidden_sizes'}:
        raise ValueError(f'an arch dict has the keys depths and hidden_sizes, got {sorted(arch)}')
    depths, hidden_sizes = tuple(arch['depths']), tuple(arch['hidden_sizes'])
    if len(depths) != len(hidden_sizes) or not depths:
        raise ValueError(
            'depths and hidden_sizes must name the same stages, at least one: '
            f'got {len(depths)} depths {depths} and {len(hidden_sizes)} hidden_sizes {hidden_sizes}'
        )
    if not all(isinstance(n, int) and n > 0 for n in depths + hidden_sizes):
        raise ValueError(
            'depths and hidden_sizes must be positive integers, '
            f'got depths {depths} and hidden_sizes {hidden_sizes}'
        )
    return Arch(depths, hidden_sizes)
