"""Infers an architecture from the tensors of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from ..arch import Arch, with_known_eps
from .hf_config import other_arguments
from .names import Name, listed, parse_native
from .sources import Source, read_checkpoint
from .translate import translate
from .variants import foreign_parts, read_variant

# Vectors with one number per channel.
_VECTORS = (('dwconv', 'bias'), ('norm', 'weight'), ('norm', 'bias'), ('pwconv2', 'bias'))


def infer_arch(source: Source, use_ema: bool = True) -> dict:
    """Infers the architecture of a checkpoint.

    Args:
        source: As in :func:`convnext_backbone.load_checkpoint`.
        use_ema: As in :func:`convnext_backbone.load_checkpoint`. Default: True.

    Returns:
        ``dict(arch=..., use_grn=..., layer_scale_init_value=...)``, arguments of
        :class:`convnext_backbone.ConvNextBackbone`: ``arch`` is a name, or a dict of depths and
        hidden sizes if they are not those of a known model; ``layer_scale_init_value`` is None if
        the blocks have no layer scale. ``kernel_size``, ``stem`` and ``norm`` are added if they are
        not those of ConvNeXt. If the norms have no bias, ``norm`` is ``'rmsnorm or simplenorm'``:
        the tensors do not tell which, and the model wants one of them. ``layer_norm_eps`` is added
        for the final norm of other projects than Hugging Face, 1e-6. For a model folder of
        Hugging Face, those of ``num_channels``, ``patch_size``, ``hidden_act``, ``norm_eps`` and
        ``layer_norm_eps`` that its ``config.json`` sets to another value than this package's
        default are added.

    Raises:
        ValueError: As :func:`convnext_backbone.load_checkpoint`, if stages or blocks are missing in
            between, or if no arguments build the model, such as for convolutions without bias.
        FileNotFoundError, TypeError, ImportError, OSError: As
            :func:`convnext_backbone.load_checkpoint`.
    """
    checkpoint = read_checkpoint(source, use_ema)
    found = translate(checkpoint)
    tensors = found.tensors
    arch = read_arch(tensors)
    if foreign := foreign_parts(tensors):
        raise ValueError(
            f'no model of convnext_backbone is like {checkpoint.source}: {"; ".join(foreign)}'
        )
    if not all(arch.depths + arch.hidden_sizes):
        raise ValueError(
            f'{checkpoint.source} is damaged: the depths of its stages are {arch.depths} and the '
            f'widths {arch.hidden_sizes}, but all must be positive'
        )
    places = {(name.stage, name.block) for name in map(parse_native, tensors)}
    blocks = [(i, j) for i, depth in enumerate(arch.depths) for j in range(depth)]
    gaps = [Name('dwconv', 'weight', i, j).native for i, j in blocks if (i, j) not in places]
    if gaps:
        raise ValueError(
            f'{checkpoint.source} is damaged: it has no {listed(gaps)}, nor any other tensor of '
            'these blocks'
        )
    arguments = arch.arguments | other_arguments(checkpoint.config, arch)
    # All norms have one eps, except in Hugging Face's V1 and V2.
    is_pooled = Name('final_norm', 'weight').native in tensors and found.format != 'hf'
    if is_pooled and arch.norm_eps != arch.final_norm_eps:
        arguments.setdefault('layer_norm_eps', arch.norm_eps)
    return arguments


def read_arch(tensors: Mapping[str, Tensor], norm: str | None = None) -> Arch:
    """Reads the architecture from tensors with native names.

    The width of a stage is the most frequent size of its norms and biases: some may be damaged.

    Args:
        tensors: Tensors by native name, in native layout.
        norm: The kind of norms without bias, if it is known. Default: None.
    """
    depths: Counter[int] = Counter()
    widths: dict[int, Counter[int]] = {}
    parts = set()
    for native, tensor in tensors.items():
        name = parse_native(native)
        if name.stage is None or name.block is None:
            continue
        depths[name.stage] = max(depths[name.stage], name.block + 1)
        parts.add(name.part)
        if (name.part, name.leaf) in _VECTORS:
            widths.setdefault(name.stage, Counter())[tensor.numel()] += 1
    stages = range(max(depths, default=-1) + 1)
    arch = Arch(
        depths=tuple(depths[i] for i in stages),
        hidden_sizes=tuple(widths[i].most_common(1)[0][0] if i in widths else 0 for i in stages),
        use_grn='grn_weight' in parts,
        has_layer_scale='layer_scale' in parts,
        variant=read_variant(tensors, norm),
    )
    return with_known_eps(arch)
