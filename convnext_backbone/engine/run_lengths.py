"""Reads the run lengths of COCO's masks, as pycocotools decodes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A number is stored in digits of 5 bits, the lowest first. A bit says whether another one follows.
BITS, MORE, FIRST, MAX_DIGITS = 5, 32, 48, 7


def pixels_of(counts: Sequence[int] | str) -> int | None:
    """Returns the sum of the run lengths of a mask, which must be the pixels of its image.

    pycocotools does not compare them: of a mask with fewer, it returns memory that it never wrote.

    Args:
        counts: The run lengths, or text in their compressed form.

    Returns:
        The sum; None if the text is damaged.
    """
    if not isinstance(counts, str):
        return sum(counts)
    runs = _decode(counts) if counts.isascii() else None
    return None if runs is None or (runs < 0).any() else int(runs.sum())


def _decode(text: str) -> np.ndarray | None:
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - FIRST
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() >= 2 * MORE or digits[-1] & MORE:
        return None
    ends = np.flatnonzero((digits & MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_DIGITS:
        return None
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & (MORE - 1)) << (BITS * places), starts)
    # The highest bit is the sign, as from the fourth number on, each is a difference to the number
    # two before it.
    runs -= np.where(digits[ends] & (MORE >> 1), 1 << (BITS * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
