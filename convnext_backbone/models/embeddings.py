"""The stem of ConvNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import is_transformed
from .norms import ConvNextLayerNorm


class ConvNextEmbeddings(nn.Module):
    """The stem: a convolution that embeds non-overlapping patches, and a norm.

    Args:
        num_channels: Number of image channels. Default: 3.
        hidden_size: Number of channels of the embedding, C. Default: 96.
        patch_size: Side of a patch in pixels, P. Default: 4.
        norm_eps: Added to the variance by the norm. Default: 1e-6.
        fused: As in :class:`ConvNextLayerNorm`. Default: None.

    Shape:
        Input: ``(N, num_channels, H, W)``; output: ``(N, C, H // P, W // P)``.
    """

    def __init__(
        self,
        num_channels: int = 3,
        hidden_size: int = 96,
        patch_size: int = 4,
        norm_eps: float = 1e-6,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.patch_embeddings = nn.Conv2d(
            num_channels, hidden_size, kernel_size=patch_size, stride=patch_size
        )
        self.layernorm = ConvNextLayerNorm(
            hidden_size, eps=norm_eps, data_format='channels_first', fused=fused
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
