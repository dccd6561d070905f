"""Loads checkpoints into models, completely or not at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from .audit import can_be_copied, match
from .containers import CheckpointError, unwrap
from .formats import MAP_NORMS
from .names import listed, parse_native
from .report import LoadReport, non_finite
from .sources import Source, read_checkpoint
from .target import Target


def load_checkpoint(
    model: nn.Module,
    source: Source,
    strict: bool = False,
    prefix: str | None = None,
    use_ema: bool = True,
) -> LoadReport:
    """Loads any ConvNeXt checkpoint into a model, completely or not at all, and logs a report.

    Args:
        model: A model of this package, or one in a distributed wrapper.
        source: A file (``.pth``, ``.safetensors``, ...), a Hugging Face model folder, an http(s)
            address, ``hf://owner/name[@revision][/file]``, or a state dict in memory, in any format
            of :data:`convnext_backbone.checkpoint.formats.FORMATS`. The ``config.json`` of a model
            folder is read, too: it tells what the tensors do not, such as ``hidden_act``.
        strict: Whether unknown names outside of the stem and the stages, and infinite or NaN
            values, are an error instead of a warning. Default: False.
        prefix: Key prefix, with or without a dot at its end; names without it are not read.
            Default: None, which finds the ConvNeXt in a larger model.
        use_ema: Whether averaged weights (a ``model_ema`` beside ``model``, a teacher beside its
            student) are loaded if there are any; else the others are. Default: True.

    Returns:
        A report of what was loaded and what was not.

    Raises:
        ValueError: If the source is not a readable checkpoint, needs to run code, or holds no
            ConvNeXt or one that does not fit (other shapes, missing or additional blocks, unknown
            tensors inside of the stem or the stages, a ``config.json`` that contradicts the model's
            arguments or is damaged). Also if the model is on the meta device, or for unknown names
            with ``strict``.
        FileNotFoundError: If the source, or a part of it, does not exist.
        TypeError: If an argument has the wrong type.
        ImportError: If the source needs a library that is not installed.
        OSError: If an address cannot be read.
    """
    module = model.module if is_model_wrapper(model) else model
    describe = getattr(module, 'checkpoint_target', None)
    if describe is None:
        raise TypeError(
            f'load_checkpoint takes a model of convnext_backbone, got {type(module).__name__}: '
            'pass its backbone, or use load_from in the config of the whole model'
        )
    for name, flag in (('strict', strict), ('use_ema', use_ema)):
        if not isinstance(flag, bool):
            raise TypeError(f'{name} must be True or False, got {flag!r}')
    if not isinstance(prefix, str) and prefix is not None:
        raise TypeError(f'prefix must be a key prefix or None, got {prefix!r}')
    target = describe()
    if any(tensor.is_meta for tensor in target.tensors.values()):
        raise ValueError(f'{target.name} is on the meta device: call to_empty(device=...) first')
    tensors, report = match(target, read_checkpoint(source, use_ema), prefix)
    if strict and report.unexpected:
        raise CheckpointError(
            f'{report.source} was not loaded, {target.name} keeps its weights: unknown names need '
            f'strict=False. Unexpected key(s): {listed(report.unexpected)}'
        )
    if strict and report.non_finite:
        raise CheckpointError(
            f'{report.source} was not loaded, {target.name} keeps its weights: infinite or NaN '
            f'values need strict=False. They are in {listed(report.non_finite)}'
        )
    # A state dict of the model itself may have other names for its tensors: copy them first.
    own = {_memory(tensor) for tensor in target.tensors.values()} - {None}
    sources = {
        name: tensor.clone() if _memory(tensor) in own else tensor
        for name, tensor in tensors.items()
    }
    with torch.no_grad():
        for name, tensor in sources.items():
            target.tensors[name].copy_(tensor)
    report.log()
    return report


def _memory(tensor: Tensor) -> int | None:
    """Returns the address of a tensor's memory; None if it has none of its own, as in FSDP."""
    is_plain = type(tensor) in (Tensor, nn.Parameter)
    return tensor.untyped_storage().data_ptr() if is_plain else None


def check_strictly(target: Target, state_dict: Mapping[str, Tensor]) -> None:
    """Refuses a state dict that lacks a tensor, has an unknown one, or infinite or NaN values.

    Args:
        target: The model.
        state_dict: The state dict, in any format; it is not changed.

    Raises:
        CheckpointError: If there is anything to refuse, or as :func:`adopt_state_dict`.
    """
    adopted = dict(state_dict)
    adopt_state_dict(target, adopted, prefix='', log=False)
    own = target.own_tensors
    problems = {
        'Missing key(s)': [name for name in own if name not in adopted],
        'Unexpected key(s)': [name for name in adopted if name not in own],
        'infinite or NaN values': non_finite(
            {name: tensor for name, tensor in adopted.items() if name in own}, own
        ),
    }
    details = [f'{what}: {listed(names)}' for what, names in problems.items() if names]
    if details:
        raise CheckpointError(
            f'a state dict was not loaded, {target.name} keeps its weights: this needs '
            f'strict=False. {". ".join(details)}'
        )


def adopt_state_dict(
    target: Target, state_dict: dict[str, Tensor], prefix: str, log: bool = True
) -> None:
    """Renames the tensors under a key prefix of a state dict to the model's own names, in place.

    :meth:`LoadsAnyCheckpoint._load_from_state_dict` calls this if a state dict is loaded into the
    model or into a larger model around it. Unknown names stay: the caller's ``strict`` decides
    about them. Names that are ignored on purpose are removed. A state dict that already has the
    model's own names and shapes is not changed, and nothing but infinite or NaN values is logged.

    Args:
        target: The model.
        state_dict: The state dict; it is changed.
        prefix: Key prefix of the model in the state dict.
        log: Whether to log what is loaded. Default: True.

    Raises:
        CheckpointError: If tensors of the model are missing or do not fit, or if unknown tensors
            are inside of the stem or the stages.
    """
    given = {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if isinstance(name, str) and name.startswith(prefix)
    }
    own = target.own_tensors
    if own.keys() == given.keys() and all(can_be_copied(given[name], own[name]) for name in own):
        if log and (bad := non_finite(given, own)):
            print_log(
                f'{target.name}: a state dict has infinite or NaN values: {listed(bad)}',
                logger='current',
                level=logging.WARNING,
            )
        return
    if not given:
        raise CheckpointError(
            f'the state dict was not loaded into {target.name}: it has nothing under the key '
            f'prefix {prefix!r}. To start from pretrained weights of the backbone, use '
            "init_cfg=dict(type='Pretrained', checkpoint=...) and init_weights(); to load only "
            'other parts, call load_state_dict of those parts'
        )
    source = f'the state dict under the key prefix {prefix!r}' if prefix else 'a state dict'
    checkpoint = unwrap(given, source)
    tensors, report = match(target, checkpoint)
    # A checkpoint without any norms of feature maps is normal: strict=True must accept it.
    norms = [name for name in target.tensors if parse_native(name).part in MAP_NORMS]
    if report.missing == norms:
        tensors |= {name: target.tensors[name] for name in norms}
    for name in given:
        del state_dict[prefix + name]
    state_dict.update({prefix + target.own_name(name): t for name, t in tensors.items()})
    state_dict.update({prefix + name: checkpoint.tensors[name] for name in report.unexpected})
    if log:
        report.log()
