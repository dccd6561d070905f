"""Translates a state dict from any format to the names and layouts of this package, and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .containers import Checkpoint, CheckpointError
from .formats import FORMATS, IGNORED, PREFERRED_PREFIXES, WRITABLE
from .layouts import from_native, is_depthwise, to_native
from .names import Name, find_name, listed, parse_name, parse_native, write_name


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
        unexpected: Unknown names in the source that have the key prefix of the ConvNeXt.
    """

    format: str
    prefix: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

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
    format_key, inner = _detect(tensors, checkpoint.source)
    result = Translation(format_key, given + inner)
    # Whole classifiers have their final norm and head next to the backbone.
    outer = inner.removesuffix('.').rpartition('.')[0]
    outer = f'{outer}.' if outer else ''
    names: dict[str, Name] = {}
    has_dense_head = False
    for source_name in tensors:
        inside = source_name.startswith(inner)
        rest = source_name.removeprefix(inner if inside else outer)
        name = parse_name(rest, FORMATS[format_key])
        if name is not None and (inside or name.part in ('final_norm', 'head')):
            names[source_name] = name
        elif reason := _reason_to_ignore(rest):
            result.ignored[given + source_name] = reason
        elif inside:
            result.unexpected.append(given + source_name)
        else:
            result.ignored[given + source_name] = f'outside of {result.prefix!r}'
            has_dense_head = True
    has_dense_head &= all(name.part != 'head' for name in names.values())
    if FORMATS[format_key].lone_norm_is_final and not has_dense_head:
        names = _reclaim_final_norm(names)
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
        ValueError: If weights cannot be written to that format.
    """
    if to not in WRITABLE:
        raise ValueError(f'weights can be written as {", ".join(WRITABLE)}, not as {to!r}')
    written, left = {}, []
    for native, tensor in tensors.items():
        name = parse_native(native)
        spelled = write_name(name, FORMATS[to])
        if spelled is None:
            left.append(native)
        else:
            written[spelled] = from_native(name, tensor, FORMATS[to])
    return written, left


def _detect(tensors: Mapping[str, Tensor], source: str) -> tuple[str, str]:
    """Returns the format that matches most names of stem and stages, and their key prefix."""
    counts: Counter[tuple[str, str]] = Counter()
    convolutions = set()
    for key, candidate in FORMATS.items():
        for source_name, tensor in tensors.items():
            place = find_name(source_name, candidate)
            if place is None:
                continue
            prefix, name = place
            counts[key, prefix] += 1
            if name.part == 'dwconv' and is_depthwise(to_native(name, tensor)):
                convolutions.add((key, prefix))
    # Other networks share some names, but not those of depthwise convolutions.
    found = {which: count for which, count in counts.items() if which in convolutions}
    if not found:
        raise CheckpointError(
            f'no ConvNeXt in {source}: none of the known formats ({", ".join(FORMATS)}) fits its '
            f'{len(tensors)} names: {listed(list(tensors))}'
        )
    best = max(found.values())
    formats: dict[str, str] = {}
    for (key, prefix), count in sorted(found.items(), key=lambda item: -item[1]):
        # A few tensors under another key prefix are not a model.
        if 2 * count >= best:
            formats.setdefault(prefix, key)
    for word in PREFERRED_PREFIXES:
        preferred = [prefix for prefix in formats if word in re.split('[._]', prefix)]
        if len(preferred) == 1:
            return formats[preferred[0]], preferred[0]
    if len(formats) > 1:
        raise CheckpointError(
            f'{source} holds several ConvNeXts, with the key prefixes {listed(sorted(formats))}: '
            'choose one with prefix=...'
        )
    prefix, key = formats.popitem()
    return key, prefix


def _reason_to_ignore(name: str) -> str | None:
    return next((reason for pattern, reason in IGNORED.items() if re.match(pattern, name)), None)


def _reclaim_final_norm(names: dict[str, Name]) -> dict[str, Name]:
    """Reads a single norm, of the last feature map, as the final norm of a classifier.

    OpenMMLab's classifiers pool before their final norm but call it ``norm3``. OpenMMLab's
    detectors use this name for the norm of a feature map. The caller excludes checkpoints with a
    neck or a dense head.
    """
    last_stage = max(name.stage or 0 for name in names.values() if name.part == 'dwconv')
    if {name.stage for name in names.values() if name.part == 'map_norm'} != {last_stage}:
        return names
    return {
        source_name: Name('final_norm', name.leaf) if name.part == 'map_norm' else name
        for source_name, name in names.items()
    }
