"""Translates a state dict from any format to the names and layouts of this package, and back."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .containers import Checkpoint, CheckpointError
from .formats import (
    AVERAGED_WORDS,
    FORMATS,
    IGNORED,
    OTHER_WORDS,
    REPLACED_WEIGHTS,
    TIMM_STEMS,
    WRITABLE,
)
from .layouts import from_native, is_convolution, to_native
from .names import (
    Name,
    find_name,
    is_averaged,
    is_inside,
    listed,
    parse_name,
    parse_native,
    words_of,
    write_name,
)
from .variants import read_variant


@dataclass
class Translation:
    """A checkpoint in the names and layouts of this package (native names).

    Attributes:
        format: Key of the source's format in the table.
        prefix: Key prefix of the ConvNeXt's names in the source, empty or with a dot at its end.
        tensors: Tensors by native name, in native layout.
        names: Names in the source, by native name.
        reshaped: Native names of tensors that had another layout.
        ignored: Names in the source that are not part of the ConvNeXt, and the reason.
        additional: Unknown names in the source inside of the stem and the stages: what they belong
            to may change the function of the model.
        unexpected: Other unknown names in the source that have the key prefix of the ConvNeXt.
        unclear_norm: Native name of the module of a single norm that is the norm of the last
            feature map in a detector and the final norm in a classifier, if the names do not tell
            which of them it is; else None. It is in ``tensors`` as the norm of the feature map.
    """

    format: str
    prefix: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    additional: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unclear_norm: str | None = None

    def add(self, source_name: str, name: Name, tensor: Tensor) -> None:
        """Adds a recognised tensor."""
        native = name.native
        if native in self.names:
            raise CheckpointError(
                f'{self.names[native]!r} and {source_name!r} in the checkpoint are both {native}: '
                'remove one of them'
            )
        self.names[native] = source_name
        self.tensors[native] = to_native(name, tensor)
        if self.tensors[native].shape != tensor.shape:
            self.reshaped.append(native)

    def take_unclear_norm_as_final(self) -> None:
        """Renames the tensors of ``unclear_norm``."""
        for native in [name for name in self.tensors if f'{self.unclear_norm}.' in name]:
            final = Name('final_norm', parse_native(native).leaf).native
            self.tensors[final] = self.tensors.pop(native)
            self.names[final] = self.names.pop(native)


def translate(checkpoint: Checkpoint, prefix: str | None = None) -> Translation:
    """Recognises the format of a checkpoint and converts its tensors to native names and layouts.

    Args:
        checkpoint: The content of a source.
        prefix: Key prefix, with or without a dot at its end; names without it are not read.
            Default: None, all names.

    Raises:
        CheckpointError: If no name has the key prefix, if no ConvNeXt is found, if several are
            found and none is preferred, or if two names mean the same tensor.
    """
    given = f'{prefix.rstrip(".")}.' if prefix else ''
    tensors = {
        name.removeprefix(given): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(given)
    }
    if not tensors:
        tops = sorted({name.partition('.')[0] for name in checkpoint.tensors})
        raise CheckpointError(
            f'{checkpoint.source} holds nothing with the key prefix {given!r}: '
            f'its names begin with {listed(tops)}'
        )
    format_key, inner = _detect(tensors, checkpoint)
    result = Translation(format_key, given + inner)
    # Whole classifiers have their final norm and head next to the backbone.
    outer = parent_of(inner)
    names: dict[str, Name] = {}
    for source_name in tensors:
        inside = source_name.startswith(inner)
        rest = source_name.removeprefix(inner if inside else outer)
        name = parse_name(rest, FORMATS[format_key])
        if name is not None and (inside or name.part in ('final_norm', 'head')):
            names[source_name] = name
        elif reason := _reason_to_ignore(rest):
            result.ignored[given + source_name] = reason
        elif inside:
            is_part = is_inside(rest, FORMATS[format_key])
            (result.additional if is_part else result.unexpected).append(given + source_name)
        else:
            result.ignored[given + source_name] = f'outside of {result.prefix!r}'
    if FORMATS[format_key].lone_norm_is_final:
        # Also names without the given key prefix tell what kind of model it is.
        whole = parent_of(result.prefix)
        siblings = [
            name.removeprefix(whole)
            for name in checkpoint.tensors
            if name.startswith(whole) and not name.startswith(result.prefix)
        ]
        names = _resolve_lone_norm(names, siblings, result)
    for source_name, name in names.items():
        result.add(given + source_name, name, tensors[source_name])
    return result


def export(tensors: Mapping[str, Tensor], to: str) -> tuple[dict[str, Tensor], list[str]]:
    """Converts native tensors to the names and layouts of another format.

    Args:
        tensors: Tensors by native name.
        to: One of ``'hf'``, ``'meta'``, ``'timm'``.

    Returns:
        The tensors by the names of that format, and the native names that it does not have.

    Raises:
        ValueError: If weights cannot be written to that format, or these are not of a ConvNeXt but
            of a relative that only timm has.
    """
    if to not in WRITABLE:
        raise ValueError(f'weights can be written as {", ".join(WRITABLE)}, not as {to!r}')
    variant = read_variant(tensors)
    if variant.arguments and to != 'timm':
        raise ValueError(
            f'these weights cannot be written as {to}, {FORMATS[to].title} has no models with '
            f'{variant}: write them as timm'
        )
    target = FORMATS[TIMM_STEMS[variant.stem] if to == 'timm' else to]
    written, left = {}, []
    for native, tensor in tensors.items():
        name = parse_native(native)
        spelled = write_name(name, target)
        if spelled is None:
            left.append(native)
        else:
            written[spelled] = from_native(name, tensor, target)
    return written, left


def _detect(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> tuple[str, str]:
    """Returns the format that matches most names of stem and stages, and their key prefix."""
    counts: Counter[tuple[str, str]] = Counter()
    convolutions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key, candidate in FORMATS.items():
        for source_name, tensor in tensors.items():
            place = find_name(source_name, candidate)
            if place is None:
                continue
            prefix, name = place
            counts[key, prefix] += 1
            is_needed = name.part in candidate.convolutions
            if is_needed and is_convolution(name, to_native(name, tensor)):
                convolutions[key, prefix].add(name.part)
    found = {
        which: count
        for which, count in counts.items()
        if convolutions[which].issuperset(FORMATS[which[0]].convolutions)
    }
    if not found:
        message = (
            f'no ConvNeXt in {checkpoint.source} ({checkpoint.container}): none of the known '
            f'formats ({", ".join(FORMATS)}) fits its {len(tensors)} names: {listed(list(tensors))}'
        )
        if checkpoint.use_ema and is_averaged(checkpoint.key):
            message += '. use_ema=False reads weights that are not averaged'
        if any(re.search(REPLACED_WEIGHTS, name) for name in tensors):
            message += '. Merge adapters (LoRA) and weight normalisation into the weights first'
        raise CheckpointError(message)
    best = max(found.values())
    formats: dict[str, str] = {}
    for (key, prefix), count in sorted(found.items(), key=lambda item: -item[1]):
        # A few tensors under another key prefix are not a model. But averaged weights that lack
        # many tensors are damaged, and other weights must not replace them.
        if 2 * count >= best or is_averaged(prefix):
            formats.setdefault(prefix, key)
    main_prefix, main_key = next(iter(formats.items()))
    for key, prefix in counts:
        # Averaged weights that have lost all depthwise convolutions are no other network: all their
        # names are names of the main one, too.
        is_lost = key == main_key and is_averaged(prefix)
        if is_lost and _under(tensors, prefix) <= _under(tensors, main_prefix):
            formats.setdefault(prefix, key)
    averaged = [p for p in formats if is_averaged(p)]
    others = [p for p in formats if p not in averaged]
    wanted = (averaged or others) if checkpoint.use_ema else (others or averaged)
    if len(wanted) == 1:
        return formats[wanted[0]], wanted[0]
    for word in (*AVERAGED_WORDS, *OTHER_WORDS):
        preferred = [prefix for prefix in wanted if word in words_of(prefix)]
        if len(preferred) == 1:
            return formats[preferred[0]], preferred[0]
    raise CheckpointError(
        f'{checkpoint.source} holds several ConvNeXts, with the key prefixes '
        f'{listed(sorted(formats))}: choose one with prefix=...'
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}


def parent_of(prefix: str) -> str:
    """Returns the key prefix of the model around the one with this key prefix."""
    return ''.join(f'{word}.' for word in prefix.split('.')[:-2])


def _reason_to_ignore(name: str) -> str | None:
    return next((reason for pattern, reason in IGNORED.items() if re.match(pattern, name)), None)


def _resolve_lone_norm(
    names: dict[str, Name], siblings: list[str], result: Translation
) -> dict[str, Name]:
    """Decides what a single norm is that belongs to the last feature map by its name.

    OpenMMLab's classifiers pool before their final norm but call it ``norm3``. OpenMMLab's
    detectors use this name for the norm of a feature map. So it is the final norm in a model with a
    classifier's last layer, and the norm of a map next to a neck or a dense head. If the file shows
    neither, ``result.unclear_norm`` is set. Names that begin with ``head.`` are not enough: pose
    estimators have them, too.

    Args:
        names: The parsed names, by name in the source.
        siblings: Other names in the same larger model, relative to it.
        result: The translation.
    """
    last_stage = max(name.stage or 0 for name in names.values() if name.part == 'dwconv')
    lone = {name.module for name in names.values() if name.part == 'map_norm'}
    if lone != {Name('map_norm', stage=last_stage)}:
        return names
    reasons = {_reason_to_ignore(name) for name in siblings}
    parsed = [parse_name(name, FORMATS[result.format]) for name in siblings]
    has_head = any(name and name.part == 'head' for name in [*names.values(), *parsed])
    # A head of several linear layers, such as head.layers.0.fc.
    has_head |= any(re.match(r'head\..*\bfc\.weight$', name) for name in siblings)
    if not has_head and None in reasons:
        return names
    if not has_head:
        result.unclear_norm = Name('map_norm', stage=last_stage).native.rstrip('.')
        return names
    return {
        source_name: Name('final_norm', name.leaf) if name.part == 'map_norm' else name
        for source_name, name in names.items()
    }
