"""The stem of ConvNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import is_transformed
from .activations import make_activation
from .checks import check_choice, check_integer
from .norms import make_norm

STEMS = ('patch', 'overlap', 'overlap_tiered', 'overlap_act')


class ConvNextEmbeddings(nn.Module):
    """The stem: a convolution that embeds non-overlapping patches, and a norm.

    timm's overlapping stems have two convolutions of 3x3 with stride 2 instead.

    Args:
        num_channels: Number of image channels. Default: 3.
        hidden_size: Number of channels of the embedding, C. Default: 96.
        patch_size: Side of a patch in pixels, P. Overlapping stems need 4. Default: 4.
        norm_eps: Added to the variance by the norm. Default: 1e-6.
        fused: As in :class:`ConvNextLayerNorm`. Default: None.
        stem: One of ``patch`` (default), ``overlap``, ``overlap_tiered`` (the first convolution has
            about C / 2 channels) and ``overlap_act`` (an activation between the convolutions).
        norm: As in :class:`ConvNextBase`. Default: ``'layernorm'``.
        hidden_act: The activation of ``overlap_act``, as in :class:`ConvNextLayer`.
            Default: ``'gelu'``.

    Shape:
        Input: ``(N, num_channels, H, W)``; output: ``(N, C, H // P, W // P)``. Overlapping stems
        round the sides up.

    Raises:
        ValueError: If ``stem``, ``norm`` or ``hidden_act`` is unknown, if a number is too small, or
            if ``patch_size`` is not 4 with an overlapping stem.
        TypeError: If a number is not an integer.
    """

    def __init__(
        self,
        num_channels: int = 3,
        hidden_size: int = 96,
        patch_size: int = 4,
        norm_eps: float = 1e-6,
        fused: bool | None = None,
        stem: str = 'patch',
        norm: str = 'layernorm',
        hidden_act: str = 'gelu',
    ) -> None:
        super().__init__()
        sizes = dict(num_channels=num_channels, hidden_size=hidden_size, patch_size=patch_size)
        for name, value in sizes.items():
            check_integer(name, value, at_least=1)
        check_choice('stem', stem, STEMS)
        if stem != 'patch' and patch_size != 4:
            raise ValueError(
                f'patch_size must be 4 with stem={stem!r}, whose two convolutions have stride 2, '
                f"got {patch_size}: leave patch_size out, or set stem='patch'"
            )
        self.num_channels = num_channels
        self.patch_embeddings: nn.Module
        if stem == 'patch':
            self.patch_embeddings = nn.Conv2d(
                num_channels, hidden_size, kernel_size=patch_size, stride=patch_size
            )
        else:
            width = tiered_width(hidden_size) if stem == 'overlap_tiered' else hidden_size
            act = [make_activation(hidden_act)] if stem == 'overlap_act' else []
            # The names in the state dict have the position, which tells whether there is an act.
            self.patch_embeddings = nn.Sequential(
                nn.Conv2d(num_channels, width, kernel_size=3, stride=2, padding=1),
                *act,
                nn.Conv2d(width, hidden_size, kernel_size=3, stride=2, padding=1),
            )
        self.layernorm = make_norm(
            norm, hidden_size, eps=norm_eps, data_format='channels_first', fused=fused
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds a batch of images.

        Raises:
            ValueError: If the number of image channels is not ``num_channels``.
        """
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f'the images have {pixel_values.shape[1]} channels, but the stem was built for '
                f'{self.num_channels}: build the model with num_channels={pixel_values.shape[1]}, '
                f'or pass images of shape (N, {self.num_channels}, H, W)'
            )
        if not is_transformed():  # vmap knows no memory formats
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.layernorm(self.patch_embeddings(pixel_values))


def tiered_width(hidden_size: int) -> int:
    """Returns timm's width for half of the channels: a multiple of 8, at least 90 % of them."""
    half = hidden_size // 2
    width = max(8, (half + 4) // 8 * 8)
    return width if width >= 0.9 * half else width + 8
