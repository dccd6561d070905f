"""The building blocks of ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import run_layer, run_norm

DATA_FORMATS = ('channels_last', 'channels_first')

# The activations of the seed family, under its names.
ACTIVATIONS = {
    'gelu': nn.GELU,
    'gelu_new': lambda: nn.GELU(approximate='tanh'),
    'relu': nn.ReLU,
    'silu': nn.SiLU,
}


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Statistics of half-precision tensors are taken in float32, of all others as they are."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def drop_path(input: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    """Stochastic depth: zeroes whole samples of a residual branch (Huang et al. 2016).

    Args:
        input: Tensor of shape ``(N, ...)``, of any rank from 1 on.
        drop_prob: Probability p of dropping a sample, in [0, 1).
        training: Whether samples are dropped at all.

    Returns:
        A tensor like ``input`` whose kept samples are scaled by 1 / (1 - p); ``input`` itself when
        not training or when p is 0.

    Raises:
        ValueError: If ``drop_prob`` lies outside [0, 1).
    """
    factors = _keep_factors(input, drop_prob, training)
    if factors is None:
        return input
    return input * factors.to(input.dtype).view(-1, *(1,) * (input.ndim - 1))


def _keep_factors(input: Tensor, drop_prob: float, training: bool) -> Tensor | None:
    """By what :func:`drop_path` multiplies each sample, ``(N,)``, or None if by nothing."""
    if not 0.0 <= drop_prob < 1.0:
        raise ValueError(f'drop_prob must lie in [0, 1), got {drop_prob}')
    if not training or drop_prob == 0.0:
        return None
    # Drawn in float32: half precision would round the probability.
    keep_prob = 1.0 - drop_prob
    return torch.empty(len(input), device=input.device).bernoulli_(keep_prob).div_(keep_prob)


class ConvNextDropPath(nn.Module):
    """:func:`drop_path` as a module that follows its own ``training`` flag.

    Args:
        drop_prob: Probability of dropping a sample, in [0, 1). Default: 0.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f'drop_prob must lie in [0, 1), got {drop_prob}')
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        return drop_path(hidden_states, self.drop_prob, self.training)

    def factors(self, hidden_states: Tensor) -> Tensor | None:
        """By what a forward pass multiplies each sample, ``(N,)``, or None if by nothing."""
        return _keep_factors(hidden_states, self.drop_prob, self.training)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob}'


class ConvNextLayerNorm(nn.LayerNorm):
    """Layer normalisation of the channel axis, wherever that axis stands.

    Half-precision inputs are normalised in float32; the output has the input's dtype.

    Args:
        normalized_shape: Number of channels C.
        eps: Added to the variance. Default: 1e-6.
        data_format: ``'channels_last'`` for inputs of shape ``(N, ..., C)`` (default) or
            ``'channels_first'`` for ``(N, C, ...)``.
        contiguous: Whether channels-first outputs also lie in memory as ``(N, C, ...)``, whatever
            their inputs do. Default: False.

    Raises:
        ValueError: If ``data_format`` is neither of the two.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        data_format: str = 'channels_last',
        contiguous: bool = False,
    ) -> None:
        if data_format not in DATA_FORMATS:
            raise ValueError(f'data_format must be one of {DATA_FORMATS}, got {data_format!r}')
        super().__init__(normalized_shape, eps=eps)
        self.data_format = data_format
        self.contiguous = contiguous

    def forward(self, features: Tensor) -> Tensor:
        if self.data_format == 'channels_first':
            return run_norm(self, features)
        return self.normalize(features)

    def normalize(self, features: Tensor) -> Tensor:
        """The norm of the last axis."""
        dtype = _compute_dtype(features.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        normalized = F.layer_norm(features.to(dtype), self.normalized_shape, weight, bias, self.eps)
        return normalized.to(features.dtype)

    def extra_repr(self) -> str:
        text = f'{super().extra_repr()}, data_format={self.data_format!r}'
        return f'{text}, contiguous=True' if self.contiguous else text


class ConvNextGRN(nn.Module):
    """Global response normalisation (ConvNeXt V2, section 4 and algorithm 1).

    Each channel is rescaled by its spatial L2 norm relative to the mean norm of all channels:
    ``weight * (x * n) + bias + x`` with ``n = ||x||_hw / mean_c(||x||_hw)``. Both parameters start
    at zero, which makes the layer an identity.

    Args:
        dim: Number of channels.

    Shape:
        ``(N, H, W, dim)`` in and out.
    """

    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, hidden_states: Tensor) -> Tensor:
        # A sum of squares over a whole map overflows half precision.
        dtype = _compute_dtype(hidden_states.dtype)
        norm = torch.linalg.vector_norm(hidden_states, dim=(1, 2), keepdim=True, dtype=dtype)
        response = (norm / (norm.mean(dim=-1, keepdim=True) + self.eps)).to(hidden_states.dtype)
        return self.weight * (hidden_states * response) + self.bias + hidden_states


class ConvNextEmbeddings(nn.Module):
    """The stem: non-overlapping patches, each embedded by a convolution and normalised.

    Args:
        num_channels: Channels of the image. Default: 3.
        hidden_size: Channels of the embedding, C. Default: 96.
        patch_size: Side of a patch in pixels, P. Default: 4.

    Shape:
        ``(N, num_channels, H, W)`` in, ``(N, C, H // P, W // P)`` out.
    """

    def __init__(self, num_channels: int = 3, hidden_size: int = 96, patch_size: int = 4) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.patch_embeddings = nn.Conv2d(
            num_channels, hidden_size, kernel_size=patch_size, stride=patch_size
        )
        self.layernorm = ConvNextLayerNorm(hidden_size, data_format='channels_first')

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds a batch of images.

        Raises:
            ValueError: If the images have another number of channels than ``num_channels``.
        """
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f'the images have {pixel_values.shape[1]} channels, but the stem was built for '
                f'{self.num_channels}: pass num_channels={pixel_values.shape[1]} to the backbone, '
                'or images in the layout (N, C, H, W) with the channels it expects'
            )
        images = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.layernorm(self.patch_embeddings(images))


class ConvNextLayer(nn.Module):
    """One block: depthwise 7x7, norm, inverted bottleneck, layer scale, drop path, residual.

    With ``use_grn`` a global response normalisation follows the activation (ConvNeXt V2).

    Args:
        dim: Number of channels, C.
        drop_path: Probability of dropping the block's branch for a sample. Default: 0.
        hidden_act: One of ``gelu`` (default), ``gelu_new``, ``relu``, ``silu``.
        use_grn: Whether the bottleneck holds a :class:`ConvNextGRN`. Default: False.
        layer_scale_init_value: Start of the learned per-channel scale of the branch; 0 or None
            builds no such parameter. Default: 1e-6.
        with_cp: Whether activations are recomputed in the backward pass instead of kept
            (gradient checkpointing). Default: False.

    Shape:
        ``(N, C, H, W)`` in and out.

    Raises:
        ValueError: If ``hidden_act`` is unknown.
    """

    # What the inner modules must be for the block to be run as one function.
    PARTS: ClassVar = {
        'dwconv': (nn.Conv2d,),
        'layernorm': (ConvNextLayerNorm,),
        'pwconv1': (nn.Linear,),
        'act': (nn.GELU,),
        'grn': (nn.Identity, ConvNextGRN),
        'pwconv2': (nn.Linear,),
        'drop_path': (ConvNextDropPath,),
    }

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        hidden_act: str = 'gelu',
        use_grn: bool = False,
        layer_scale_init_value: float | None = 1e-6,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f'hidden_act must be one of {list(ACTIVATIONS)}, got {hidden_act!r}')
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.layernorm = ConvNextLayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = ACTIVATIONS[hidden_act]()
        self.grn = ConvNextGRN(4 * dim) if use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        if layer_scale_init_value:
            self.layer_scale_parameter = nn.Parameter(torch.full((dim,), layer_scale_init_value))
        else:
            self.register_parameter('layer_scale_parameter', None)
        self.drop_path = ConvNextDropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, hidden_states: Tensor) -> Tensor:
        return run_layer(self, hidden_states)

    def run_modules(self, hidden_states: Tensor) -> Tensor:
        """The block module by module; :func:`run_layer` gives the same in less memory."""
        branch = self.dwconv(hidden_states).permute(0, 2, 3, 1)
        branch = self.layernorm(branch)
        branch = self.grn(self.act(self.pwconv1(branch)))
        branch = self.pwconv2(branch)
        if self.layer_scale_parameter is not None:
            branch = branch * self.layer_scale_parameter
        return hidden_states + self.drop_path(branch.permute(0, 3, 1, 2))
