"""The architectures of the ConvNeXt family, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Variant:
    """What timm's relatives of ConvNeXt have instead; by default ConvNeXt itself.

    Attributes:
        kernel_size: Side of the depthwise convolutions' kernels; one per stage if they differ.
        stem: ``'patch'``, ``'overlap'``, ``'overlap_tiered'`` or ``'overlap_act'``.
        norm: ``'layernorm'``, ``'rmsnorm'`` or ``'simplenorm'``. A checkpoint whose norms have no
            bias is ``'rmsnorm or simplenorm'``: its tensors do not tell which.
    """

    kernel_size: int | tuple[int, ...] = 7
    stem: str = 'patch'
    norm: str = 'layernorm'

    @property
    def arguments(self) -> dict:
        """The arguments of a model that are not those of ConvNeXt."""
        return {key: value for key, value in vars(self).items() if value != getattr(Variant, key)}

    def __str__(self) -> str:
        return ', '.join(f'{key}={value!r}' for key, value in self.arguments.items())


def one_or_per_stage(sizes: Sequence[int]) -> int | tuple[int, ...]:
    """Returns the kernel size that all stages have, or one per stage."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


@dataclass(frozen=True)
class Arch:
    """One architecture of the ConvNeXt family.

    Attributes:
        depths: Number of blocks in each stage.
        hidden_sizes: Number of channels in each stage.
        use_grn: Whether the blocks have global response normalisation (ConvNeXt V2).
        has_layer_scale: Whether the blocks have a layer scale (ConvNeXt V1).
        variant: Kernel size, stem and norm.
        norm_eps: Added to the variance by the norms of stem, downsamplings, blocks and feature
            maps. Architectures that differ only in this or the next number are equal.
        final_norm_eps: Added to the variance by the norm of the pooled features.
    """

    depths: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    use_grn: bool = False
    has_layer_scale: bool = True
    variant: Variant = Variant()
    norm_eps: float = field(default=1e-6, compare=False)
    final_norm_eps: float = field(default=1e-12, compare=False)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """``('stem', 'stage1', ..., 'stageN')``."""
        return ('stem', *(f'stage{i + 1}' for i in range(len(self.depths))))

    @property
    def arguments(self) -> dict:
        """The arguments of :class:`convnext_backbone.ConvNextBackbone` that build this model."""
        shape = (self.depths, self.hidden_sizes)
        names = [name for name, arch in ARCHS.items() if (arch.depths, arch.hidden_sizes) == shape]
        # A name also fits if GRN or layer scale differ, which are separate arguments; but a name
        # of exactly this architecture is better.
        names.sort(key=lambda name: ARCHS[name] != replace(self, variant=Variant()))
        numbers = dict(depths=list(self.depths), hidden_sizes=list(self.hidden_sizes))
        return dict(
            arch=names[0] if names else numbers,
            use_grn=self.use_grn,
            layer_scale_init_value=1e-6 if self.has_layer_scale else None,
            **self.variant.arguments,
        )

    def __str__(self) -> str:
        """Returns the name of the model, or its depths, sizes and the closest name."""
        closest = min(ARCHS, key=lambda name: self._distance(ARCHS[name]))
        version = '-V2' if closest.startswith('v2-') else ''
        title = f'ConvNeXt{version}-{closest.removeprefix("v2-")}'
        has_layer_scale = ARCHS[closest].has_layer_scale
        if replace(self, has_layer_scale=has_layer_scale, variant=Variant()) != ARCHS[closest]:
            title = (
                f'ConvNeXt with depths {self.depths}, hidden_sizes {self.hidden_sizes}'
                f'{" and GRN" if self.use_grn else ""} (closest: {title})'
            )
        # V2 blocks never have a layer scale.
        title += '' if self.has_layer_scale or self.use_grn else ' without layer scale'
        return f'{title} with {self.variant}' if self.variant.arguments else title

    def _distance(self, other: Arch) -> float:
        """Sums the log2 ratios of depths and sizes, plus penalties for other differences."""
        total = 4.0 * abs(len(self.depths) - len(other.depths))
        total += (self.use_grn != other.use_grn) / 4
        pairs = [
            *zip(self.depths, other.depths, strict=False),
            *zip(self.hidden_sizes, other.hidden_sizes, strict=False),
        ]
        return total + sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in pairs)


# From ConvNeXt (section 3 and official repository) and ConvNeXt V2 (appendix A). The four smallest
# V1 models have the depths and sizes of V2 models, but V1 blocks. The largest V1 model is that of
# OpenCLIP (LAION-2B) and timm.
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
    'xxlarge': ((3, 4, 30, 3), (384, 768, 1536, 3072)),
    'huge': ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}
_V1 = ('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base', 'large', 'xlarge', 'xxlarge')
_V2 = ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')


def with_known_eps(arch: Arch) -> Arch:
    """Sets the eps of all norms to that of xxlarge if the depths and sizes are its own."""
    is_xxlarge = (arch.depths, arch.hidden_sizes) == _SHAPES['xxlarge']
    return replace(arch, norm_eps=1e-5, final_norm_eps=1e-5) if is_xxlarge else arch


ARCHS = {
    **{name: with_known_eps(Arch(*_SHAPES[name])) for name in _V1},
    **{f'v2-{name}': Arch(*_SHAPES[name], use_grn=True, has_layer_scale=False) for name in _V2},
}


def resolve_arch(
    arch: str | Mapping, use_grn: bool | None = None, has_layer_scale: bool = True
) -> Arch:
    """Finds an architecture by name, or builds it from ``dict(depths=..., hidden_sizes=...)``.

    Args:
        arch: The name, or the dict.
        use_grn: Whether the blocks are ConvNeXt V2 blocks. Default: None, which follows the name,
            and means V1 blocks for a dict.
        has_layer_scale: Whether V1 blocks have a layer scale; V2 blocks never have one.
            Default: True.

    Raises:
        ValueError: If the name is unknown, if the dict has other keys, or if its two lists differ
            in length, are empty or contain other values than positive integers.
        TypeError: If ``arch`` is neither a name nor a dict.
    """
    found = _look_up(arch)
    use_grn = found.use_grn if use_grn is None else use_grn
    return replace(found, use_grn=use_grn, has_layer_scale=has_layer_scale and not use_grn)


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
        raise ValueError(
            f'an arch dict must have exactly the keys depths and hidden_sizes, got {sorted(arch)}'
        )
    for key, numbers in arch.items():
        if isinstance(numbers, str) or not isinstance(numbers, Sequence):
            raise TypeError(f'{key} must be a list with one integer per stage, got {numbers!r}')
    depths, hidden_sizes = tuple(arch['depths']), tuple(arch['hidden_sizes'])
    if len(depths) != len(hidden_sizes) or not depths:
        raise ValueError(
            'depths and hidden_sizes must have one entry per stage and at least one stage, '
            f'got {len(depths)} depths {depths} and {len(hidden_sizes)} hidden_sizes {hidden_sizes}'
        )
    if not all(type(n) is int and n > 0 for n in depths + hidden_sizes):
        raise ValueError(
            'depths and hidden_sizes must be positive integers, '
            f'got depths {depths} and hidden_sizes {hidden_sizes}'
        )
    return with_known_eps(Arch(depths, hidden_sizes))
