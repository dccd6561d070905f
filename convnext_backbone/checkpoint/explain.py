"""Explains why a checkpoint does not fit a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .infer import read_arch
from .layouts import is_plain
from .names import Name, listed, parse_native
from .target import Target
from .translate import Translation
from .variants import UNCLEAR_NORM, foreign_parts

_STEM = Name('stem_conv', 'weight').native


def explain(
    target: Target,
    source: str,
    found: Translation,
    lost: list[str],
    surplus: list[str],
    misfits: dict[str, str],
) -> str:
    """Describes which tensors do not fit the model, and which model would fit the file.

    Args:
        target: The model.
        source: Path or address of the checkpoint.
        found: The checkpoint.
        lost: Native names of the model's tensors that the checkpoint does not have.
        surplus: Native names of the checkpoint's tensors that the model does not have.
        misfits: Native names of tensors that cannot be copied, and how both look.
    """
    theirs = read_arch(found.tensors, target.arch.variant.norm)
    parts = {parse_native(native).part for native in [*lost, *surplus, *misfits]}
    theirs_parts = {parse_native(native).part for native in found.tensors}
    dtypes = {found.tensors[native].dtype for native in misfits}
    unusable = {dtype for dtype in dtypes if not is_plain(dtype)}
    if parts == {'head'}:
        head = found.tensors.get(Name('head', 'weight').native)
        has = 'no head' if head is None else f'a head for num_labels={len(head)}'
        verdict = (
            f'this file fits except for the head: it has {has}; '
            'load_checkpoint(model.convnext, ...) loads everything except the head'
        )
    elif 'final_norm' in parts and any('norm_pre.' in name for name in found.ignored):
        verdict = (
            'it is a classifier that normalises before pooling (head_norm_first of timm), and '
            f'{target.name} does so after it; the backbone can be loaded'
        )
    elif parts <= {'final_norm', 'head'} and parts.isdisjoint(theirs_parts):
        what = 'final norm and the head' if 'head' in parts else 'final norm'
        verdict = f'this file is a {theirs} without the {what} of a classifier'
        others = [name for name in found.ignored if not name.startswith(found.prefix)]
        if others:
            modules = dict.fromkeys(name.partition('.')[0] for name in others)
            verdict += (
                f': it is {found.prefix!r} in a larger model, such as a detector, that also has '
                f'{", ".join(modules)}'
            )
    elif unusable:
        verdict = (
            f'its tensors are of {", ".join(sorted(map(str, unusable)))}: convert them to '
            'torch.float32 first, and multiply quantised ones by their scales'
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
    elif theirs == target.arch and found.additional:
        verdict = (
            'this file has other tensors in the place of weights: merge adapters (LoRA), weight '
            'normalisation or quantised weights into the weights first'
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
        'Unexpected key(s)': [*surplus, *found.additional],
        'size mismatch (in the file, in the model)': [f'{n} ({m})' for n, m in misfits.items()],
    }
    details = [f'{what}: {listed(names)}' for what, names in problems.items() if names]
    return (
        f'{source} was not loaded, {target.name} keeps its weights: {verdict}. {". ".join(details)}'
    )


def _differ_in_patches(
    theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], misfits: Mapping[str, str]
) -> bool:
    """Whether the stem's weight is all that does not fit, because of the side of its kernel."""
    if misfits.keys() != {_STEM} or theirs[_STEM].ndim != 4:
        return False
    return theirs[_STEM].shape[:2] == own[_STEM].shape[:2]
