"""The choice of the feature maps that a backbone returns, by name or by index."""

from __future__ import annotations

from collections.abc import Sequence


def resolve_out_features(
    stage_names: Sequence[str],
    out_features: Sequence[str] | None,
    out_indices: Sequence[int] | None,
) -> tuple[str, ...]:
    """Resolves a choice by name, by index, by both or by neither to stage names.

    Args:
        stage_names: All names in order, ``('stem', 'stage1', ...)``.
        out_features: Names to return, in stage order.
        out_indices: Indices to return, in stage order: 0 is stage1, negative indices count from the
            last stage. The stem has no index.

    Returns:
        The chosen names; the name of the last stage if both arguments are None.

    Raises:
        ValueError: If a choice is unknown, repeated, empty or out of order, or if the two disagree.
        TypeError: If an argument is a string or not a sequence, or if an index is not an integer.
    """
    picks = stage_names[-1:]
    if out_features is not None:
        picks = _check_order(stage_names, _as_tuple('out_features', out_features), 'out_features')
    if out_indices is not None:
        by_index = _names_of(stage_names, _as_tuple('out_indices', out_indices))
        if out_features is not None and picks != by_index:
            raise ValueError(
                f'out_features {picks} and out_indices {tuple(out_indices)} ({by_index}) disagree: '
                'pass only one of them, or the same stages in both'
            )
        picks = by_index
    return tuple(picks)


def _as_tuple(argument: str, picks: Sequence) -> tuple:
    if isinstance(picks, str) or not isinstance(picks, Sequence):
        raise TypeError(
            f'{argument} must be a sequence, got {picks!r}: '
            f'write {argument}=({picks!r},) for a single feature map'
        )
    return tuple(picks)


def _names_of(stage_names: Sequence[str], indices: tuple[int, ...]) -> tuple[str, ...]:
    stages = stage_names[1:]
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(f'out_indices must contain integers, got {index!r} in {indices}')
        if not -len(stages) <= index < len(stages):
            raise ValueError(
                f'out_indices {indices} contain {index}; allowed are 0 ({stages[0]}) to '
                f'{len(stages) - 1} ({stages[-1]}), and -1 to {-len(stages)} from the last stage'
            )
    return _check_order(stage_names, tuple(stages[index] for index in indices), 'out_indices')


def _check_order(
    stage_names: Sequence[str], names: tuple[str, ...], argument: str
) -> tuple[str, ...]:
    """Checks that ``names`` are in ``stage_names``, in the same order and each at most once."""
    if not names or [name for name in stage_names if name in names] != list(names):
        raise ValueError(
            f'{argument} selects {names}; allowed are one or more of {tuple(stage_names)}, '
            'each at most once and in this order'
        )
    return names
