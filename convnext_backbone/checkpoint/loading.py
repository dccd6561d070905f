"""Loading checkpoints into models: the function, the state-dict door and mmengine's init_cfg."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from mmengine.model import PretrainedInit, is_model_wrapper, update_init_info
from torch import Tensor, nn

from .architecture import read_architecture
from .audit import Target, match
from .containers import Checkpoint, CheckpointError, unwrap
from .names import listed
from .report import LoadReport
from .sources import read_checkpoint
from .translate import translate

Source = str | os.PathLike | Mapping


def load_checkpoint(
    model: nn.Module, source: Source, strict: bool = False, prefix: str | None = None
) -> LoadReport:
    """Loads any ConvNeXt checkpoint into a model, all of it or nothing, and logs what it loaded.

    Args:
        model: A model of this package, or one in a distributed wrapper.
        source: A file (``.pth``, ``.safetensors``, ...), a Hugging Face model folder, an http(s)
            address, ``hf://owner/name[@revision][/file]``, or a state dict in memory, in any naming
            of :data:`convnext_backbone.checkpoint.formats.FORMATS`.
        strict: Whether names that nothing explains are an error, not a warning. Default: False.
        prefix: Reads only what stands beneath it, with or without the dot at its end. Default:
            None; the ConvNeXt in a larger model is found by itself.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: If the source is no readable checkpoint, needs code to be run, holds no
            ConvNeXt, or one that does not fit: another shape, missing or surplus blocks.
        FileNotFoundError: If the source, or a part of it, does not exist.
        TypeError: If the model or the source is of another type.
        ImportError: If the source needs a library that is not installed.
        OSError: If an address cannot be read.
    """
    module = model.module if is_model_wrapper(model) else model
    if not hasattr(module, 'checkpoint_target'):
        raise TypeError(
            f'load_checkpoint takes a model of convnext_backbone, got {type(module).__name__}: '
            'of a detector pass its backbone, or use load_from in its config'
        )
    target = module.checkpoint_target()
    if any(tensor.is_meta for tensor in target.tensors.values()):
        raise ValueError(f'{target.name} is on the meta device: call to_empty(device=...) first')
    tensors, report = match(target, _as_checkpoint(source), prefix)
    if strict and report.unexpected:
        raise CheckpointError(
            f'{report.source} was not loaded, {target.name} keeps its weights: with strict=True '
            f'every name must be known. Unexpected key(s): {listed(report.unexpected)}'
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            target.tensors[name].copy_(tensor)
    report.log()
    return report


def infer_arch(source: Source) -> dict:
    """Reads off a checkpoint which model it is of.

    Args:
        source: As of :func:`load_checkpoint`.

    Returns:
        ``dict(arch=..., use_grn=..., layer_scale_init_value=...)``, arguments of
        :class:`convnext_backbone.ConvNextBackbone`: ``arch`` is a name, or a dict of depths and
        hidden sizes where no known model has them; ``layer_scale_init_value`` is None where the
        blocks have no layer scale.

    Raises:
        ValueError: As :func:`load_checkpoint`, or if blocks or stages are missing in between.
        FileNotFoundError, TypeError, ImportError, OSError: As :func:`load_checkpoint`.
    """
    checkpoint = _as_checkpoint(source)
    architecture = read_architecture(translate(checkpoint).tensors)
    if not all(architecture.arch.depths + architecture.arch.hidden_sizes):
        raise ValueError(
            f'{checkpoint.source} is damaged: of its stages, in order, '
            f'depths are {architecture.arch.depths}, widths {architecture.arch.hidden_sizes}'
        )
    return architecture.arguments


def adopt_state_dict(target: Target, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Turns what a state dict holds beneath a model's prefix into the model's own names, in place.

    This is for :meth:`torch.nn.Module._load_from_state_dict`, through which every loading of a
    state dict passes, be it of the model or of a larger one around it. Names that nothing explains
    stay, and are for the caller's ``strict`` to judge; what is left out on purpose goes. A state
    dict that is the model's own already, be it resumed from or handed down by a model around it,
    passes without a word.

    Raises:
        CheckpointError: If the model cannot be given all it needs.
    """
    beneath = {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    own = {target.own_name(name): tensor for name, tensor in target.tensors.items()}
    if own.keys() == beneath.keys() and all(_alike(beneath[name], own[name]) for name in own):
        return
    checkpoint = unwrap(beneath, f'the state dict beneath {prefix!r}' if prefix else 'a state dict')
    tensors, report = match(target, checkpoint)
    # Without any map norms a checkpoint is of another kind of model, and strict=True has nothing
    # to complain of.
    norms = [name for name in target.tensors if name.startswith('hidden_states_norms.')]
    if report.missing == norms:
        tensors |= {name: target.tensors[name] for name in norms}
    tensors |= {name: checkpoint.tensors[name] for name in report.unexpected}
    for name in beneath:
        del state_dict[prefix + name]
    state_dict.update({prefix + target.own_name(name): t for name, t in tensors.items()})
    report.log()


def _alike(given: object, own: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == own.shape and given.is_floating_point()


class AnyPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained`` initialisation, reading with :func:`load_checkpoint`."""

    def __call__(self, module: nn.Module) -> None:
        load_checkpoint(module, self.checkpoint, prefix=self.prefix)
        update_init_info(module, init_info=self._get_init_info())


def _as_checkpoint(source: Source) -> Checkpoint:
    return unwrap(source) if isinstance(source, Mapping) else read_checkpoint(source)
