"""What the data sheets of NVIDIA's cards say."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """Figures of a data sheet.

    Attributes:
        title: The card.
        arch: Its architecture: 90 for sm_90.
        bandwidth: Bytes a second.
        rate: Operations a second in float32.
        product_rate: Operations a second of dense matrix products in bfloat16 that sum in float32.
    """

    title: str
    arch: int
    bandwidth: float
    rate: float
    product_rate: float


# NVIDIA's data sheets of these cards, and its white papers on the GeForce architectures.
CARDS = {
    'a100': Card('A100 SXM 80 GB', 80, 2.039e12, 19.5e12, 312e12),
    '3090': Card('GeForce RTX 3090', 86, 0.936e12, 35.6e12, 71e12),
    '4090': Card('GeForce RTX 4090', 89, 1.008e12, 82.6e12, 165e12),
    'h100': Card('H100 SXM', 90, 3.35e12, 67e12, 989e12),
    'h200': Card('H200 SXM', 90, 4.8e12, 67e12, 989e12),
    'b200': Card('B200', 100, 8e12, 75e12, 2250e12),
}
