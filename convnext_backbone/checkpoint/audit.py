"""Decides which tensors of a checkpoint go into a model, before anything is copied."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arch import Arch
from .containers import Checkpoint, CheckpointError
from .explain import explain
from .formats import MAP_NORMS
from .hf_config import check_config
from .layouts import is_plain
from .names import Name, listed, parse_native
from .report import LoadReport, non_finite
from .stems import adapt_stem, can_be_adapted
from .target import Target
from .translate import Translation, parent_of, translate

# Parts that are ignored if the model does not have them, and the reason.
_LEFT_OUT = {
    'stem_map_norm': 'norms of unused feature maps',
    'map_norm': 'norms of unused feature maps',
    'final_norm': 'final norm',
    'head': 'head',
}


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
        if is_first and has_plain_values(tensor) and can_be_adapted(tensor, own):
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
        raise CheckpointError(explain(target, checkpoint.source, found, lost, surplus, misfits))
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
            f'{checkpoint.source} was not loaded, {target.name} keeps its weights: this file '
            f'runs more than a norm and one linear layer after the pooling, {listed(layers)}; '
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
        and has_plain_values(tensor)
        and (own.is_meta or not tensor.is_meta)
    )


def has_plain_values(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers as they are, one after another."""
    return is_plain(tensor.dtype) and tensor.layout == torch.strided


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
    source_name = found.names[head]
    # Of head.fc.weight or head.weight: head.
    parent = source_name.rsplit('.', 2)[0] + '.'
    layers = [
        name for name, why in found.ignored.items() if why == 'head' and name.startswith(parent)
    ]
    if not source_name.startswith(found.prefix):
        # The head is next to the backbone, and so is what runs between them.
        whole = parent_of(found.prefix)
        layers += [
            name
            for name, why in found.ignored.items()
            if why.startswith('outside') and name.startswith(whole)
        ]
    return layers


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


def _layout(tensor: Tensor) -> str:
    """Describes a tensor: its shape, and what is unusual about it."""
    words = [str(tuple(tensor.shape))]
    if not is_plain(tensor.dtype):
        words.append(str(tensor.dtype).removeprefix('torch.'))
    if tensor.layout != torch.strided:
        words.append(str(tensor.layout).removeprefix('torch.'))
    if tensor.is_meta:
        words.append('without values, on the meta device')
    return ' '.join(words)
