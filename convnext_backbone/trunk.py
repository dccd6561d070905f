"""What the backbone and the pooled model share: the check of their images and their start."""

from __future__ import annotations

from torch import Tensor, nn


def check_images(pixel_values: Tensor, smallest: int, deepest: str) -> None:
    """Refuses what the stem and the stages cannot take.

    Args:
        pixel_values: The images.
        smallest: Stride of the deepest stage in pixels, which images must not fall short of.
        deepest: Name of that stage.

    Raises:
        ValueError: If the images have another rank than 4 or a side below ``smallest``.
        TypeError: If the images are no tensor of real floating-point numbers.
    """
    if not isinstance(pixel_values, Tensor):
        raise TypeError(f'the images must be a tensor, got {type(pixel_values).__name__}')
    if pixel_values.ndim != 4:
        raise ValueError(
            f'the images must be a 4-D tensor (N, C, H, W), got shape {tuple(pixel_values.shape)}'
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f'the images must be floating point, got {pixel_values.dtype}: '
            'convert and normalise them first'
        )
    height, width = pixel_values.shape[2:]
    if min(height, width) < smallest:
        raise ValueError(
            f'images of {height}x{width} are too small for {deepest}, whose stride is {smallest}: '
            f'the smallest size that works is {smallest}x{smallest}'
        )


def init_weights(module: nn.Module) -> None:
    """The official initialisation; norms, GRN and layer scale start as they are built."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
