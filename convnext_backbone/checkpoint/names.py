"""Reading and writing of names by the templates of a format."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from .formats import NATIVE, NORMS_AND_HEAD, PARAMETERS, Format

# How the number in a placeholder follows from the stage index i: factor * i + offset.
_STAGE_NUMBERS = {'i': (1, 0), 'n': (1, 1), 'even': (2, 0), 'odd': (2, 1)}

# Sparse convolutions call their weight a kernel.
_LEAF = r'\.(?P<leaf>weight|bias|kernel)'


class Name(NamedTuple):
    """A tensor's place in a ConvNeXt, whatever the format.

    Attributes:
        part: A part of the format table.
        leaf: ``'weight'``, ``'bias'`` or ``'kernel'``; '' for parts that are a tensor themselves.
        stage: Index of the stage from 0; None for parts that belong to no stage.
        block: Index of the block in its stage; None for parts that belong to no block.
    """

    part: str
    leaf: str = ''
    stage: int | None = None
    block: int | None = None

    @property
    def native(self) -> str:
        """The project's own name, in which every part has a place."""
        return write_name(self, NATIVE)


def parse_name(name: str, source: Format) -> Name | None:
    """Reads a name that stands beneath the model's prefix; None if the format has no such name."""
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
            return Name(part, leaf, stage, block and int(block))
    return None


def write_name(name: Name, target: Format) -> str | None:
    """Spells a name in another format; None if that format has no place for the part."""
    template = target.parts.get(name.part)
    if template is None:
        return None
    numbers = {'j': name.block}
    if name.stage is not None:
        for placeholder, (factor, offset) in _STAGE_NUMBERS.items():
            numbers[placeholder] = factor * name.stage + offset
    spelled = template.format(**numbers)
    if name.part in PARAMETERS:
        return spelled
    return f'{spelled}.{"weight" if name.leaf == "kernel" else name.leaf}'


def find_name(name: str, source: Format) -> tuple[str, Name] | None:
    """Reads a name of the stem or the stages beneath any prefix; None if it is not one.

    Returns:
        The prefix, '' or ending in a dot, and the name beneath it.
    """
    match = _anywhere(source).fullmatch(name)
    found = match and parse_name(name.removeprefix(match['prefix']), source)
    return None if found is None else (match['prefix'], found)


def listed(names: list[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for messages."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


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


def _as_regex(template: str) -> str:
    return re.sub(r'\\{(\w+)\\}', r'(?P<\1>\\d+)', re.escape(template))
