"""Reading an architecture off a checkpoint's tensors, and naming it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..arch import ARCHS, Arch

_BLOCK = re.compile(r'encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)')


@dataclass(frozen=True)
class Architecture:
    """An :class:`Arch` and whether its blocks have a layer scale."""

    arch: Arch
    has_layer_scale: bool

    @property
    def arguments(self) -> dict:
        """The arguments of :class:`ConvNextBackbone` that build it."""
        exact = [name for name, arch in ARCHS.items() if arch == self.arch]
        # Blocks of the other version may still have the shape of a known model.
        shape = (self.arch.depths, self.arch.hidden_sizes)
        exact += [name for name, arch in ARCHS.items() if (arch.depths, arch.hidden_sizes) == shape]
        depths, hidden_sizes = map(list, shape)
        return dict(
            arch=exact[0] if exact else dict(depths=depths, hidden_sizes=hidden_sizes),
            use_grn=self.arch.use_grn,
            layer_scale_init_value=1e-6 if self.has_layer_scale else None,
        )

    def __str__(self) -> str:
        """The name, or the numbers and the closest name."""
        closest = min(ARCHS, key=lambda name: _distance(self.arch, ARCHS[name]))
        title = (
            f'ConvNeXt{"-V2" if closest.startswith("v2-") else ""}-{closest.removeprefix("v2-")}'
        )
        if self.arch != ARCHS[closest]:
            title = (
                f'ConvNeXt with depths {self.arch.depths}, hidden_sizes {self.arch.hidden_sizes}'
                f'{" and GRN" if self.arch.use_grn else ""} (closest: {title})'
            )
        # V2 blocks have none by design.
        return title + ('' if self.has_layer_scale or self.arch.use_grn else ' without layer scale')


def read_architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """Reads the architecture of native tensors; a width is what most of a stage's norms have."""
    depths, widths = Counter(), {}
    parts = set()
    for name, tensor in tensors.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            continue
        stage, block, part = int(match[1]), int(match[2]), match[3]
        depths[stage] = max(depths[stage], block + 1)
        parts.add(part)
        if part in ('dwconv.bias', 'layernorm.weight', 'layernorm.bias', 'pwconv2.bias'):
            widths.setdefault(stage, Counter())[tensor.numel()] += 1
    stages = range(max(depths, default=-1) + 1)
    arch = Arch(
        depths=tuple(depths[i] for i in stages),
        hidden_sizes=tuple(widths[i].most_common(1)[0][0] if i in widths else 0 for i in stages),
        use_grn='grn.weight' in parts,
    )
    return Architecture(arch, has_layer_scale='layer_scale_parameter' in parts)


def _distance(one: Arch, other: Arch) -> float:
    """Sum of the ratios of depths and widths, as powers of two."""
    total = 4 * abs(len(one.depths) - len(other.depths)) + (one.use_grn != other.use_grn) / 4
    for ours, theirs in ((one.depths, other.depths), (one.hidden_sizes, other.hidden_sizes)):
        total += sum(
            abs(math.log2(max(a, 1) / max(b, 1))) for a, b in zip(ours, theirs, strict=False)
        )
    return total
