"""Deciding, before anything is copied, what of a checkpoint goes into a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .architecture import Architecture, read_architecture
from .containers import Checkpoint, CheckpointError
from .names import listed
from .report import LoadReport
from .translate import Translation, translate

_STEM = 'embeddings.patch_embeddings.weight'
_MAP_NORMS = 'hidden_states_norms.'
HEAD = 'classifier.'


@dataclass
class Target:
    """What a model takes from a checkpoint.

    Attributes:
        name: Class of the model.
        architecture: What it is.
        tensors: Its state dict, by native names.
        left_out: What a checkpoint may have of native names and the model has not, as prefixes of
            names to what they are.
        adapt_stem: Whether the stem's weight may be made to fit other image channels.
        trunk: What precedes the native names of all but the head in the model's own.
    """

    name: str
    architecture: Architecture
    tensors: dict[str, Tensor]
    left_out: dict[str, str] = field(default_factory=dict)
    adapt_stem: bool = False
    trunk: str = ''

    def own_name(self, native: str) -> str:
        """The model's own name of a tensor."""
        return native if native.startswith(HEAD) else self.trunk + native


def match(
    target: Target, checkpoint: Checkpoint, prefix: str | None = None
) -> tuple[dict[str, Tensor], LoadReport]:
    """Finds the tensors of a checkpoint that a model is to be given.

    Args:
        target: The model.
        checkpoint: The checkpoint, in any known format.
        prefix: Only names beneath it are read. Default: None, all names.

    Returns:
        Tensors by native names, each of the model's shape, and the report.

    Raises:
        CheckpointError: If a tensor of the model has another shape in the checkpoint or, map norms
            apart, none, if the checkpoint has blocks or parts of blocks that the model has not, or
            if no ConvNeXt, or no single one, is found.
    """
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
    tensors: dict[str, Tensor] = {}
    surplus, misfits = [], []
    for name, tensor in found.tensors.items():
        reason = next((r for start, r in target.left_out.items() if name.startswith(start)), None)
        if reason is not None:
            report.ignored[found.names[name]] = reason
        elif name not in target.tensors:
            surplus.append(name)
        else:
            own = target.tensors[name]
            if name == _STEM and _differ_in_channels(tensor, own):
                tensor = _adapt_stem(tensor, own, target)
                report.adapted.append(name)
            if tensor.shape != own.shape or not tensor.is_floating_point():
                misfits.append(f'{name} ({_layout(tensor)} for {_layout(own)})')
            tensors[name] = tensor

    lacking = [name for name in target.tensors if name not in tensors]
    for name in lacking:
        module = name.rpartition('.')[0]
        if (
            name.startswith(_MAP_NORMS)
            and f'{module}.weight' in lacking
            and f'{module}.bias' in lacking
        ):
            report.missing.append(name)
    lost = [name for name in lacking if name not in report.missing]
    if lost or surplus or misfits:
        problems = {
            'Missing key(s)': lost,
            'Unexpected key(s)': surplus,
            'size mismatch (in the file, in the model)': misfits,
        }
        raise CheckpointError(_explain(target, checkpoint, found, problems))
    report.matched = list(tensors)
    report.reshaped = [name for name in found.reshaped if name in tensors]
    return tensors, report


def _differ_in_channels(tensor: Tensor, own: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.shape[1] != own.shape[1]
        and (tensor.shape[0], *tensor.shape[2:]) == (own.shape[0], *own.shape[2:])
    )


def _adapt_stem(weight: Tensor, own: Tensor, target: Target) -> Tensor:
    """Sums RGB weights for one channel; else tiles them, scaled to keep the response's size."""
    given, wanted = weight.shape[1], own.shape[1]
    if not target.adapt_stem or given != 3:
        raise CheckpointError(
            f'the checkpoint is of images with {given} channels, {target.name} takes {wanted}; it '
            'keeps its weights. '
            + (
                'adapt_stem=True sums or tiles the weights of the stem to fit'
                if given == 3
                else f'adapt_stem only works from 3 channels: pass num_channels={given}'
            )
        )
    if wanted == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight.repeat(1, -(-wanted // 3), 1, 1)[:, :wanted] * (3 / wanted)


def _explain(
    target: Target, checkpoint: Checkpoint, found: Translation, problems: dict[str, list[str]]
) -> str:
    theirs = read_architecture(found.tensors)
    if all(name.startswith(HEAD) for names in problems.values() for name in names):
        head = found.tensors.get(f'{HEAD}weight')
        has = 'no head' if head is None else f'a head for num_labels={len(head)}'
        verdict = (
            f'but for the head this file fits, and it has {has}; '
            'load_checkpoint(model.convnext, ...) loads all but the head'
        )
    elif theirs == target.architecture:
        verdict = f'this file and the model are both a {theirs}, but the file is damaged'
    else:
        arguments = ', '.join(f'{name}={value!r}' for name, value in theirs.arguments.items())
        verdict = (
            f'this file is a {theirs}, the model is a {target.architecture}; '
            f'the arguments {arguments} fit the file'
        )
    details = [f'{what}: {listed(names)}' for what, names in problems.items() if names]
    return (
        f'{checkpoint.source} was not loaded, {target.name} keeps its weights: {verdict}. '
        f'{". ".join(details)}'
    )


def _layout(tensor: Tensor) -> str:
    dtype = '' if tensor.is_floating_point() else f' {str(tensor.dtype).removeprefix("torch.")}'
    return f'{tuple(tensor.shape)}{dtype}'
