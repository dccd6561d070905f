"""Reads and writes tensor names with the templates of a format."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from itertools import islice
from typing import NamedTuple

from .formats import AVERAGED_WORDS, NATIVE, NORMS_AND_HEAD, PARAMETERS, Format

# The number in a placeholder is factor * i + offset, where i is the index of the stage.
_STAGE_NUMBERS = {'i': (1, 0), 'n': (1, 1), 'even': (2, 0), 'odd': (2, 1)}

# Sparse convolutions call their weight a kernel.
_LEAF = r'\.(?P<leaf>weight|bias|kernel)'


class Name(NamedTuple):
    """The place of a tensor in a ConvNeXt, independent of the format.

    Attributes:
        part: A part of the format table.
        leaf: ``'weight'``, ``'bias'`` or ``'kernel'``; '' for parts that are one tensor.
        stage: Index of the stage, from 0; None for parts outside the stages.
        block: Index of the block in its stage, from 0; None for parts outside the blocks.
    """

    part: str
    leaf: str = ''
    stage: int | None = None
    block: int | None = None

    @property
    def native(self) -> str:
        """The name in this package, whose format has every part."""
        return _spell(self, NATIVE.parts[self.part])

    @property
    def module(self) -> Name:
        """The place of the module that the tensor belongs to."""
        return self._replace(leaf='')


def parse_name(name: str, source: Format) -> Name | None:
    """Reads a name without key prefix; returns None if the format has no such name."""
    for part, pattern in _patterns(source).items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        numbers = match.groupdict()
        leaf, block = numbers.pop('leaf', ''), numbers.pop('j', None)
        stage = rest = None
        for placeholder, digits in numbers.items():
            factor, offset = _STAGE_NUMBERS[placeholder]
            stage, rest = divmod(int(digits) - offset, factor)
        if not rest:
            return Name(part, leaf, stage, None if block is None else int(block))
    return None


def parse_native(name: str) -> Name:
    """Reads a name of this package.

    Raises:
        ValueError: If this package has no such name.
    """
    parsed = parse_name(name, NATIVE)
    if parsed is None:
        raise ValueError(f'{name!r} is not a tensor name of convnext_backbone')
    return parsed


def write_name(name: Name, target: Format) -> str | None:
    """Writes a name in another format; returns None if that format does not have the part."""
    template = target.parts.get(name.part)
    return None if template is None else _spell(name, template)


def _spell(name: Name, template: str) -> str:
    numbers = {'j': name.block}
    if name.stage is not None:
        for placeholder, (factor, offset) in _STAGE_NUMBERS.items():
            numbers[placeholder] = factor * name.stage + offset
    spelled = template.format(**numbers)
    if name.part in PARAMETERS:
        return spelled
    return f'{spelled}.{"weight" if name.leaf == "kernel" else name.leaf}'


def find_name(name: str, source: Format) -> tuple[str, Name] | None:
    """Reads a name of the stem or the stages after any key prefix.

    Returns:
        The key prefix, empty or with a dot at its end, and the name after it; None if the name is
        not one of the stem or the stages.
    """
    match = _anywhere(source).fullmatch(name)
    if match is None:
        return None
    found = parse_name(name.removeprefix(match['prefix']), source)
    return None if found is None else (match['prefix'], found)


def words_of(key: str) -> set[str]:
    """Returns the words of a key or a key prefix: ``model_ema.`` has model and ema."""
    return set(re.split('[._]', key))


def is_averaged(key: str) -> bool:
    """Whether a key or a key prefix says that the weights under it are averages."""
    return not words_of(key).isdisjoint(AVERAGED_WORDS)


def is_inside(name: str, source: Format) -> bool:
    """Whether a name without key prefix is inside of the stem or the stages, known or not."""
    return _inside(source).match(name) is not None


def listed(names: Collection[object], limit: int = 5) -> str:
    """Returns the first few names and the number of the others, for messages."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(str(name) for name in islice(names, limit)) + more


@cache
def _patterns(source: Format) -> dict[str, re.Pattern]:
    return {
        part: re.compile(_as_regex(template) + ('' if part in PARAMETERS else _LEAF))
        for part, template in source.parts.items()
    }


@cache
def _anywhere(source: Format) -> re.Pattern:
    names = [
        re.sub(r'\?P<\w+>', '?:', pattern.pattern)
        for part, pattern in _patterns(source).items()
        if part not in NORMS_AND_HEAD
    ]
    return re.compile(rf'(?P<prefix>(?:.*\.)?)(?:{"|".join(names)})')


@cache
def _inside(source: Format) -> re.Pattern:
    # The first word of a template: downsample_layers of downsample_layers.{i}.0.
    words = {
        re.split(r'[.{]|_(?=[\d{])', template)[0]
        for part, template in source.parts.items()
        if part not in NORMS_AND_HEAD
    }
    return re.compile(rf'(?:{"|".join(sorted(words))})(?:\.|_\d)')


def _as_regex(template: str) -> str:
    return re.sub(r'\\{(\w+)\\}', r'(?P<\1>\\d+)', re.escape(template))
