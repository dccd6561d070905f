"""How the rows of a feature map are cut into tiles, and how many programs share them.

All choices depend on shapes alone: the order of every sum, and so each bit of it, is the same on
every card and in every run.
"""

from __future__ import annotations

import triton
from torch import Tensor

# Elements of a tile of columns: 8 for each thread of eight warps.
TILE_ELEMENTS = 2048
TILE_WARPS = 8

# Programs of a kernel that sums over rows. The largest cards run about this many at a time; every
# program writes one partial sum of each column, so that more would only cost memory traffic.
MAX_PROGRAMS = 1024


def column_tile(channels: int) -> tuple[int, int]:
    """Returns the rows and the columns of a tile: the columns, 32 or 64, that waste fewer."""
    columns = min((64, 32), key=lambda width: triton.cdiv(channels, width) * width)
    return TILE_ELEMENTS // columns, columns


def count_partials(rows: int, tile_rows: int, others: int) -> int:
    """Returns the number of programs that share the rows, each of which writes a partial sum.

    Args:
        rows: Number of rows.
        tile_rows: Rows of a tile.
        others: Number of programs along the other axes.
    """
    return max(1, min(triton.cdiv(rows, tile_rows), MAX_PROGRAMS // others))


def check_contiguous(**tensors: Tensor | None) -> None:
    """Checks that kernels may address the tensors as rows of memory.

    Raises:
        ValueError: If a tensor is not contiguous.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f'{name} must be contiguous, and has the shape {tuple(tensor.shape)} and the '
                f'strides {tensor.stride()}: call .contiguous() before'
            )
