"""Decides which tensors of a checkpoint go into a model, before anything is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arch import Arch
from .containers import Checkpoint, CheckpointError
from .formats import MAP_NORMS, NATIVE
from .hf_config import check_config
from .infer import read_arch
from .names import Name, listed, parse_name, parse_native
from .report import LoadReport, non_finite
from .stems import adapt_stem, can_be_adapted
from .translate import Translation, translate
from .variants import UNCLEAR_NORM, foreign_parts

# Parts that are ignored if the model does not have them, and the reason.
_LEFT_OUT = {
    'stem_map_norm': 'norms of unused feature maps',
    'map_norm': 'norms of unused feature maps',
    'final_norm': 'final norm',
    'head': 'head',
}


_STEM = Name('stem_conv', 'weight').native


@dataclass
class Target:
    """The description of a model for the loading of checkpoints.

    Attributes:
        name: The class of the model.
        arch: The architecture.
        tensors: The state dict, by native name.
        adapt_stem: Whether the stem's weight may be adapted to another number of image channels or
            to smaller patches.
        key_prefix: Key prefix of native names in the model's own state dict, except for the head.
        settings: What the tensors do not tell about the model, by constructor argument.
    """

    name: str
    arch: Arch
    tensors: dict[str, Tensor]
    adapt_stem: bool = False
    key_prefix: str = ''
    settings: dict = field(default_factory=dict)

    def own_name(self, native: str) -> str:
        """Returns the model's own name of a tensor."""
        name = parse_name(native, NATIVE)
        is_head = name is not None and name.part == 'head'
        return native if is_head else self.key_prefix + native


def match(
    target: Target, checkpoint: Checkpoint, prefix: str | None = None
) -> tuple[dict[str, Tensor], LoadReport]:
    """Finds the tensors of a checkpoint that go into a model.

    Args:
        target: The model.
        checkpoint: The checkpoint, in any known format.
        prefix: Key prefix; names without it are not read. Default: None, all names.

    Returns:
        Tensors by native name, each with its shape in the model, and the report.

    Raises:
        CheckpointError: If a tensor of the model is missing in the checkpoint (except norms of
            feature maps) or has another shape there, if the checkpoint has blocks or parts of
            blocks that the model does not have, if it has unknown tensors inside of the stem or the
            stages, if its ``config.json`` contradicts the model, or if it holds no ConvNeXt or
            several ConvNeXts.
    """
    check_config(checkpoint, target.name, target.settings, target.adapt_stem)
    found = translate(checkpoint, prefix)
    report = LoadReport(
        target.name,
        checkpoint.source,
        checkpoint.container,
        found.format,
        found.prefix,
        unexpected=found.unexpected,
        ignored=found.ignored,
    )
    own_names = {native: parse_native(native) for native in target.tensors}
    own_modules = {name.module for name in own_names.values()}
    if found.unclear_norm is not None:
        report.unclear = _settle_unclear_norm(found, own_modules)
    tensors: dict[str, Tensor] = {}
    surplus: list[str] = []
    misfits: dict[str, str] = {}
    for native, tensor in found.tensors.items():
        name = parse_native(native)
        own = target.tensors.get(native)
        if own is None:
            reason = _reason_to_leave_out(name, own_modules, target.arch)
            if reason is None:
                surplus.append(native)
            else:
                report.ignored[found.names[native]] = reason
            continue
        is_first = name.leaf == 'weight' and name.part in ('stem_conv', 'overlap_conv1')
        if is_first and can_be_adapted(tensor, own):
            tensor = adapt_stem(tensor, own, target.name, target.adapt_stem)
            report.adapted.append(native)
        if not can_be_copied(tensor, own):
            misfits[native] = f'{_layout(tensor)} for {_layout(own)}'
        tensors[native] = tensor

    loaded_modules = {own_names[native].module for native in tensors}
    lost: list[str] = []
    for native, name in own_names.items():
        if native in tensors:
            continue
        # Few checkpoints have norms of feature maps. A norm without its weight or bias is damaged.
        is_fresh = name.part in MAP_NORMS and name.module not in loaded_modules
        (report.missing if is_fresh else lost).append(native)
    if lost or surplus or misfits:
        raise CheckpointError(_explain(target, checkpoint, found, lost, surplus, misfits))
    if found.additional:
        raise CheckpointError(
            f'{checkpoint.source} was not loaded, {target.name} keeps its weights: it has unknown '
            f'tensors inside of the stem or the stages, {listed(found.additional)}. Layers that '
            f'{target.name} does not have (adapters, attention, scales of quantised weights) may '
            'change the output: merge them into the weights. If they change nothing, load the '
            'state dict without these names'
        )
    if layers := _additional_head_layers(target, found):
        raise CheckpointError(
            f'{checkpoint.source} was not loaded, {target.name} keeps its weights: the head of '
            f'this file has more than one linear layer, {listed(layers)}; '
            'load_checkpoint(model.convnext, ...) loads everything except the head'
        )
    report.matched = list(tensors)
    report.non_finite = non_finite(tensors, target.tensors)
    report.reshaped = [name for name in found.reshaped if name in tensors]
    return tensors, report


def can_be_copied(tensor: object, own: Tensor) -> bool:
    """Whether a tensor of a checkpoint can be copied to a model's own tensor."""
    return (
        isinstance(tensor, Tensor)
        and tensor.shape == own.shape
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and (own.is_meta or not tensor.is_meta)
    )


def _settle_unclear_norm(found: Translation, own_modules: set[Name]) -> str:
    """Takes a norm of unclear meaning as what the model has, and says so.

    A model whose only norm is that of the last feature map gets it; it is most likely the same
    detector. A classifier's final norm is close enough to start from there. Any other model takes
    it as the final norm.
    """
    # A damaged norm may have only one of its tensors; it is refused later.
    native = next(name for name in found.names if name.startswith(f'{found.unclear_norm}.'))
    source_name = found.names[native].rpartition('.')[0]
    is_map = {name.native.rstrip('.') for name in own_modules if name.part in MAP_NORMS} == {
        found.unclear_norm
    }
    if not is_map:
        found.take_unclear_norm_as_final()
    return (
        f'{source_name!r} is the norm of a feature map in a detector and the final norm in a '
        'classifier, and the names do not tell which. It is taken as '
        + ('the norm of the feature map' if is_map else 'the final norm')
        + '. If this is wrong, pass the whole checkpoint, with its neck or its head'
    )


def _additional_head_layers(target: Target, found: Translation) -> list[str]:
    """Names of layers between pooling and the last layer of the head, which no model here has."""
    head = Name('head', 'weight').native
    if head not in target.tensors or head not in found.names:
        return []
    # Of head.fc.weight or head.weight: head.
    parent = found.names[head].rsplit('.', 2)[0] + '.'
    return [
        name for name, why in found.ignored.items() if why == 'head' and name.startswith(parent)
    ]


def _reason_to_leave_out(name: Name, own_modules: set[Name], arch: Arch) -> str | None:
    """Returns why a tensor may be left out of a model with these modules; None if it may not."""
    if name.module in own_modules:
        return None
    if name.part in _LEFT_OUT:
        return _LEFT_OUT[name.part]
    num_built = len({own.stage for own in own_modules if own.block is not None})
    if name.stage is not None and num_built <= name.stage < len(arch.depths):
        return 'deeper stages'
    return None


def _explain(
    target: Target,
    checkpoint: Checkpoint,
    found: Translation,
    lost: list[str],
    surplus: list[str],
    misfits: dict[str, str],
) -> str:
    """Describes which tensors do not fit the model, and which model would fit the file."""
    theirs = read_arch(found.tensors, target.arch.variant.norm)
    parts = {parse_native(native).part for native in [*lost, *surplus, *misfits]}
    if parts == {'head'}:
        head = found.tensors.get(Name('head', 'weight').native)
        has = 'no head' if head is None else f'a head for num_labels={len(head)}'
        verdict = (
            f'this file fits except for the head: it has {has}; '
            'load_checkpoint(model.convnext, ...) loads everything except the head'
        )
    elif parts == {'final_norm', 'head'} == parts - {parse_native(n).part for n in found.tensors}:
        verdict = f'this file is a {theirs} without the final norm and the head of a classifier'
        others = [name for name in found.ignored if not name.startswith(found.prefix)]
        if others:
            modules = dict.fromkeys(name.partition('.')[0] for name in others)
            verdict += (
                f': it is {found.prefix!r} in a larger model, such as a detector, that also has '
                f'{", ".join(modules)}'
            )
    elif foreign := foreign_parts(found.tensors):
        verdict = f'no model of convnext_backbone is like this file: {"; ".join(foreign)}'
    elif not all(theirs.depths + theirs.hidden_sizes):
        absent = [i + 1 for i, depth in enumerate(theirs.depths) if not depth]
        lacks = (
            f'it has no blocks of stage {", ".join(map(str, absent))}'
            if absent
            else f'its blocks lack the tensors that tell their width, {theirs.hidden_sizes}'
        )
        verdict = f'this file is damaged: {lacks}'
    elif theirs == target.arch and _differ_in_patches(found.tensors, target.tensors, misfits):
        sides = [tensors[_STEM].shape[-1] for tensors in (found.tensors, target.tensors)]
        verdict = (
            f'this file has patch_size={sides[0]}, the model patch_size={sides[1]}; build the '
            f'model with patch_size={sides[0]} to fit the file'
        )
    elif theirs == target.arch:
        verdict = f'this file and the model are both a {theirs}, but the file is damaged'
    else:
        # Also the defaults that the model was not built with.
        wanted = {key: getattr(theirs.variant, key) for key in target.arch.variant.arguments}
        wanted |= theirs.arguments
        arguments = ', '.join(f'{name}={value!r}' for name, value in wanted.items())
        verdict = (
            f'this file is a {theirs}, the model is a {target.arch}; '
            f'build the model with {arguments} to fit the file'
        )
        if theirs.variant.norm == UNCLEAR_NORM:
            verdict += (
                ". The tensors do not tell which of the two norms: timm's zepto_rms has "
                'simplenorm, its atto_rms has rmsnorm'
            )
    problems = {
        'Missing key(s)': lost,
        'Unexpected key(s)': surplus,
        'size mismatch (in the file, in the model)': [f'{n} ({m})' for n, m in misfits.items()],
    }
    details = [f'{what}: {listed(names)}' for what, names in problems.items() if names]
    return (
        f'{checkpoint.source} was not loaded, {target.name} keeps its weights: {verdict}. '
        f'{". ".join(details)}'
    )


def _differ_in_patches(
    theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], misfits: Mapping[str, str]
) -> bool:
    """Whether the stem's weight is all that does not fit, because of the side of its kernel."""
    if misfits.keys() != {_STEM} or theirs[_STEM].ndim != 4:
        return False
    return theirs[_STEM].shape[:2] == own[_STEM].shape[:2]


def _layout(tensor: Tensor) -> str:
    """Describes a tensor: its shape, and what is unusual about it."""
    words = [str(tuple(tensor.shape))]
    if not tensor.is_floating_point():
        words.append(str(tensor.dtype).removeprefix('torch.'))
    if tensor.layout != torch.strided:
        words.append(str(tensor.layout).removeprefix('torch.'))
    if tensor.is_meta:
        words.append('without values, on the meta device')
    return ' '.join(words)
