"""Writes values as the Python code of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WIDTH = 100

# Entries of fewer columns share a line.
SHORT = 60


class Code(str):
    """An expression, which is written as it is."""


@dataclass
class Setting:
    """One assignment of a config, with a comment above it.

    Attributes:
        name: The variable.
        value: Its value.
        comment: One line without ``#``; empty for none.
    """

    name: str
    value: object
    comment: str = ''

    def __str__(self) -> str:
        # What has a comment starts a section.
        lines = ['', f'# {self.comment}'] if self.comment else []
        return '\n'.join([*lines, f'{self.name} = {write(self.value, len(self.name) + 3)}'])


def write(value: object, offset: int = 0, indent: int = 0) -> str:
    """Writes a value in one line if it fits, else in several, in which short entries come together.

    Args:
        value: Dicts, lists, tuples, :class:`Code` and what has a ``repr``.
        offset: Columns that are taken in its first line. Default: 0.
        indent: Columns by which its last line is indented. Default: 0.
    """
    if isinstance(value, Mapping):
        opening, closing = 'dict(', ')'
        entries = [(f'{key}=', entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        opening, closing = '[]' if isinstance(value, list) else '()'
        entries = [('', entry) for entry in value]
    else:
        return str(value) if isinstance(value, Code) else repr(value)
    parts = [f'{key}{write(entry, -10_000)}' for key, entry in entries]
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    line = f'{opening}{", ".join(parts)}{comma}{closing}'
    if offset + len(line) < WIDTH:
        return line
    inner = indent + 4
    rows: list[str] = []
    joins = False
    for key, entry in entries:
        row = f'{key}{write(entry, inner + len(key) + 1, inner)},'
        short = len(row) < SHORT and '\n' not in row
        if short and joins and inner + len(rows[-1]) + 1 + len(row) <= WIDTH:
            rows[-1] += f' {row}'
        else:
            rows.append(row)
        joins = short
    pad = ' ' * inner
    return f'{opening}\n' + ''.join(f'{pad}{row}\n' for row in rows) + ' ' * indent + closing
