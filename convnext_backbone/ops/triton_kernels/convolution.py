"""What the depthwise kernels share: where their tiles are, and the convolution of a tile.

A tile is ``ROWS`` rows of ``PIXELS`` neighbouring pixels, in some channels. In Triton's terms, it
is a tuple of ``PIXELS`` blocks of shape ``(ROWS, channels)``, so that every thread has all pixels
of a row in registers, in four channels. A pixel that it loads serves up to seven sums. The rows lie
below each other: they share most of the pixels around them in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

PIXELS = 8
_PIXELS = tl.constexpr(PIXELS)

# The threads of a warp have four channels each.
WARP_CHANNELS = 128


def count_tiles(batch: int, height: int, width: int, rows: int, pixels: int = PIXELS) -> int:
    """Returns the number of tiles of ``rows`` rows and ``pixels`` pixels in feature maps."""
    return batch * triton.cdiv(height, rows) * triton.cdiv(width, pixels)


@triton.jit
def locate(tile, height, width, ROWS: tl.constexpr):
    """Returns the image of a tile in int64, its first row and its first pixel."""
    strips = tl.cdiv(width, _PIXELS)
    blocks = tl.cdiv(height, ROWS)
    block = tile // strips
    return (block // blocks).to(tl.int64), block % blocks * ROWS, tile % strips * _PIXELS


@triton.jit
def load_vector(vector, channels, inside, ROWS: tl.constexpr):
    """Loads numbers per channel for all rows, ``(ROWS, channels)``.

    Each thread loads those of its own channels, so that threads need not exchange them.
    """
    shape: tl.constexpr = [ROWS, channels.shape[1]]
    return tl.load(
        vector + tl.broadcast_to(channels, shape), tl.broadcast_to(inside, shape), 0.0
    ).to(tl.float32)


@triton.jit
def find_inside(first, width, COUNT: tl.constexpr):
    """Returns for ``COUNT`` neighbouring pixels, from ``first`` on, whether they exist."""
    inside = ()
    for i in tl.static_range(COUNT):
        inside += ((first + i >= 0) & (first + i < width),)
    return inside


@triton.jit
def load_line(line, exists, inside, step):
    """Loads neighbouring pixels. They are zero outside of the maps.

    Args:
        line: Pointers to the first pixel, ``(rows, channels)``.
        exists: Whether these rows and channels exist, of the same shape.
        inside: For each pixel, whether it exists.
        step: Number of channels of the maps.
    """
    pixels = ()
    for i in tl.static_range(len(inside)):
        pixel = tl.load(line, exists & inside[i], 0.0)
        pixels += (pixel.to(tl.float32),)
        line += step
    return pixels


@triton.jit
def convolve(
    maps,
    taps,
    sums,
    image,
    rows,
    first,
    channels,
    inside,
    height,
    width,
    count,
    ROWS: tl.constexpr,
    FLIPPED: tl.constexpr,
):
    """Adds the convolution of a tile to ``sums`` and returns them.

    Args:
        maps: Feature maps ``(N, H, W, C)``.
        taps: ``(49, C)``.
        sums: A tile.
        image: The image of the tile, in int64.
        rows: Its rows, ``(ROWS, 1)``.
        first: Its first pixel.
        channels: Its channels, ``(1, channels)``.
        inside: Whether these channels exist, of the same shape.
        height: H.
        width: W.
        count: Number of channels of the maps.
        ROWS: Rows of the tile.
        FLIPPED: Whether the taps are flipped, as in the gradient with respect to the input.
    """
    pixels_inside = find_inside(first - 3, width, _PIXELS + 6)
    step = tl.cast(count, tl.int64)
    for ky in range(7):
        sources = rows + (ky - 3)
        exists = (sources >= 0) & (sources < height) & inside
        line = maps + ((image * height + sources) * width + (first - 3)) * count + channels
        pixels = load_line(line, exists, pixels_inside, step)
        line_taps = ()
        for kx in tl.static_range(7):
            tap = 48 - ky * 7 - kx if FLIPPED else ky * 7 + kx
            line_taps += (load_vector(taps + tap * step, channels, inside, ROWS),)
        new = ()
        for i in tl.static_range(_PIXELS):
            value = sums[i]
            for kx in tl.static_range(7):
                value += pixels[i + kx] * line_taps[kx]
            new += (value,)
        sums = new
    return sums
