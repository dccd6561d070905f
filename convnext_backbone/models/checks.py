"""Checks of constructor arguments, so that a wrong value is an error where it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeGuard

import torch
from mmengine.model import PretrainedInit

_FLOAT = torch.finfo(torch.float32)
_PRETRAINED_KEYS = {
    *('type', 'checkpoint', 'prefix', 'map_location', 'use_ema'),
    *('override', '_scope_'),  # which mmengine takes in all entries
}


def check_integer(name: str, value: object, at_least: int) -> None:
    """Refuses everything but an integer of at least ``at_least``.

    Raises:
        TypeError: If the value is not an integer; True and False are not.
        ValueError: If it is too small.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f'{name} must be an integer, got {value!r}')
    if value < at_least:
        raise ValueError(f'{name} must be at least {at_least}, got {value}')


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Refuses everything but one of several names.

    Raises:
        ValueError: If the value is anything else.
    """
    # A list, as a set would fail for values that cannot be hashed.
    if value not in list(allowed):
        raise ValueError(f'{name} must be one of {list(allowed)}, got {value!r}')


def kernel_size_of_stages(value: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Refuses everything but an odd kernel size of at least 3, or one per stage.

    Returns:
        One per stage.

    Raises:
        TypeError: If the value is neither an integer nor a sequence of integers.
        ValueError: If a number is even or too small, or if there is not one per stage.
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    sizes: tuple[int, ...] = tuple(value) if is_list else (value,) * num_stages  # type: ignore
    for size in sizes:
        check_kernel_size(size)
    if len(sizes) != num_stages:
        raise ValueError(
            f'kernel_size must be one number or one for each of the {num_stages} stages, '
            f'got {value!r}'
        )
    return sizes


def check_kernel_size(value: object) -> None:
    """Refuses everything but an odd integer of at least 3.

    Raises:
        TypeError: If the value is not an integer.
        ValueError: If it is even or too small.
    """
    check_integer('kernel_size', value, at_least=3)
    if value % 2 == 0:  # type: ignore[operator]
        raise ValueError(f'kernel_size must be odd, so that resolutions stay, got {value}')


def check_flag(name: str, value: object, optional: bool = False) -> None:
    """Refuses everything but True and False, and None if it is optional.

    Raises:
        TypeError: If the value is anything else; a text such as ``'False'`` would count as True.
    """
    if not isinstance(value, bool) and not (optional and value is None):
        allowed = 'True, False or None' if optional else 'True or False'
        raise TypeError(f'{name} must be {allowed}, got {value!r}')


def check_rate(name: str, value: object) -> None:
    """Refuses everything but a number in [0, 1).

    Raises:
        TypeError: If the value is not a number.
        ValueError: If it is outside [0, 1).
    """
    if not _is_number(value):
        raise TypeError(f'{name} must be a number in [0, 1), got {value!r}')
    if not 0 <= value < 1:
        raise ValueError(f'{name} must be in [0, 1), got {value}')


def check_finite(name: str, value: object) -> None:
    """Refuses everything but None and a number that is finite in float32.

    Raises:
        TypeError: If the value is neither a number nor None.
        ValueError: If it is infinite, not a number (NaN) or too large for float32.
    """
    if value is None:
        return
    if not _is_number(value):
        raise TypeError(f'{name} must be a number or None, got {value!r}')
    if not abs(value) <= _FLOAT.max:  # NaN is not <= anything
        raise ValueError(f'{name} must be finite in float32, got {value}')


def check_positive(name: str, value: object) -> None:
    """Refuses everything but None and a number that is positive and finite in float32.

    Raises:
        TypeError: If the value is neither a number nor None.
        ValueError: If it is not positive, too small for a normal number in float32, infinite or not
            a number (NaN).
    """
    check_finite(name, value)
    if _is_number(value) and value < _FLOAT.tiny:
        raise ValueError(f'{name} must be positive in float32, at least 1.2e-38, got {value}')


def check_init_cfg(value: object) -> None:
    """Refuses everything but what mmengine takes.

    Raises:
        TypeError: If the value is not a dict, a list of dicts or None.
        ValueError: If an entry has no type, or if one of type Pretrained lacks its checkpoint or
            has another key than the known ones.
    """
    if not isinstance(value, (dict, list, tuple)) and value is not None:
        raise TypeError(
            f'init_cfg must be a dict or a list of dicts, got {value!r}: to load a checkpoint, use '
            "dict(type='Pretrained', checkpoint=...)"
        )
    for entry in [value] if isinstance(value, dict) and value else value or ():
        if not isinstance(entry, dict):
            raise TypeError(f'init_cfg must be a dict or a list of dicts, got {entry!r} in it')
        if 'type' not in entry:
            raise ValueError(
                f"init_cfg needs a type in each dict, such as type='Pretrained', got {entry!r}"
            )
        is_pretrained = entry['type'] in ('Pretrained', PretrainedInit)
        if is_pretrained and ('checkpoint' not in entry or entry.keys() - _PRETRAINED_KEYS):
            raise ValueError(
                'init_cfg of type Pretrained takes checkpoint=... and optionally prefix=..., '
                f'use_ema=..., got {entry!r}'
            )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
