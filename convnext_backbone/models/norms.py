"""The normalisations of ConvNeXt and its relatives: over the channels, and GRN (ConvNeXt V2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import compiled_norm, fused_norm, have_norm_kernels, wide
from .checks import check_choice, check_flag, check_integer, check_positive
from .fusion import (
    fused_replaces,
    is_exported,
    obstacle_in_functions,
    obstacle_in_switch,
    obstacle_in_tensors,
)

DATA_FORMATS = ('channels_last', 'channels_first')


class ConvNextLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channel axis, in both data formats.

    Half-precision inputs are normalised in float32; the output has the dtype of the input.

    Args:
        normalized_shape: Number of channels C.
        eps: Added to the variance. Default: 1e-6.
        data_format: ``'channels_last'`` for inputs of shape ``(N, ..., C)`` (default) or
            ``'channels_first'`` for ``(N, C, ...)``.
        contiguous: Whether channels-first outputs are always contiguous, whatever the memory
            format of the input. Default: False.
        fused: Whether channels-first inputs may be normalised by this package's kernels. Default:
            None, which follows the environment variable ``CONVNEXT_FUSED``.

    Raises:
        ValueError: If ``data_format`` is neither of the two, or a number is not positive.
        TypeError: If ``normalized_shape`` is not an integer, ``eps`` is not a number, or ``fused``
            is not True, False or None.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        data_format: str = 'channels_last',
        contiguous: bool = False,
        fused: bool | None = None,
    ) -> None:
        if data_format not in DATA_FORMATS:
            raise ValueError(f'data_format must be one of {DATA_FORMATS}, got {data_format!r}')
        check_integer('normalized_shape', normalized_shape, at_least=1)
        if eps is None:
            raise TypeError('eps must be a number, got None')
        check_positive('eps', eps)
        check_flag('fused', fused, optional=True)
        super().__init__(normalized_shape, eps=eps)
        self.data_format = data_format
        self.contiguous = contiguous
        self.fused = fused

    def forward(self, features: Tensor) -> Tensor:
        if self.data_format == 'channels_last':
            return self.normalize(features)
        channels_last = features.permute(0, *range(2, features.ndim), 1)
        if self._can_be_fused(channels_last):
            run = compiled_norm if torch.compiler.is_compiling() else fused_norm
            normed = run(channels_last, self.weight, self.bias, self.eps, self.contiguous)
            return normed if self.contiguous else normed.permute(0, 3, 1, 2)
        normed = self.normalize(channels_last).permute(
            0, features.ndim - 1, *range(1, features.ndim - 1)
        )
        return normed.contiguous() if self.contiguous else normed

    def normalize(self, features: Tensor) -> Tensor:
        """Normalises over the last axis."""
        dtype = wide(features.dtype)
        weight, bias = (t if t is None else t.to(dtype) for t in (self.weight, self.bias))
        normalized = F.layer_norm(features.to(dtype), self.normalized_shape, weight, bias, self.eps)
        return normalized.to(features.dtype)

    def extra_repr(self) -> str:
        text = f'{super().extra_repr()}, data_format={self.data_format!r}'
        return f'{text}, contiguous=True' if self.contiguous else text

    def _can_be_fused(self, features: Tensor) -> bool:
        """Whether kernels are available and give the same result as :meth:`normalize`."""
        return (
            features.ndim == 4
            and not is_exported()
            and obstacle_in_switch(self.fused) is None
            and obstacle_in_functions() is None
            and type(self).normalize is ConvNextLayerNorm.normalize
            and 'normalize' not in self.__dict__
            and self.weight is not None
            and self.bias is not None
            and self.weight.shape == self.bias.shape == self.normalized_shape
            and self.normalized_shape == features.shape[-1:]
            and obstacle_in_tensors([features, self.weight, self.bias]) is None
            and have_norm_kernels(features, self.weight.dtype)
        )


fused_replaces(ConvNextLayerNorm, 'forward', 'normalize')


class ConvNextRMSNorm(ConvNextLayerNorm):
    """Divides by the root of the mean square of the channels, as timm's ``rmsnorm``.

    The mean is not subtracted, and there is no bias. Arguments as in :class:`ConvNextLayerNorm`; no
    kernels of this package compute it.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_parameter('bias', None)

    def normalize(self, features: Tensor) -> Tensor:
        """Normalises over the last axis."""
        hidden = features.to(wide(features.dtype))
        hidden = hidden * torch.rsqrt(self.squared_scale(hidden) + self.eps)
        return (hidden * self.weight.to(hidden.dtype)).to(features.dtype)

    def squared_scale(self, features: Tensor) -> Tensor:
        """Returns the square of what the channels are divided by, except for ``eps``."""
        return features.square().mean(-1, keepdim=True)


class ConvNextSimpleNorm(ConvNextRMSNorm):
    """Divides by the standard deviation of the channels, as timm's ``simplenorm``.

    The mean is not subtracted from what is divided, and there is no bias. Its variance is the
    unbiased one, of N - 1 degrees of freedom.
    """

    def squared_scale(self, features: Tensor) -> Tensor:
        return features.var(-1, keepdim=True)


# By the names of timm.
NORMS = {
    'layernorm': ConvNextLayerNorm,
    'rmsnorm': ConvNextRMSNorm,
    'simplenorm': ConvNextSimpleNorm,
}


def make_norm(norm: str, channels: int, **args) -> ConvNextLayerNorm:
    """Builds a norm of one of ``NORMS``, with the arguments of :class:`ConvNextLayerNorm`.

    Raises:
        ValueError: If there is none of this name.
    """
    check_choice('norm', norm, NORMS)
    return NORMS[norm](channels, **args)


class ConvNextGRN(nn.Module):
    """Global response normalisation (ConvNeXt V2, section 4 and algorithm 1).

    Each channel is rescaled by its spatial L2 norm relative to the mean norm of all channels:
    ``weight * (x * n) + bias + x`` with ``n = ||x||_hw / (mean_c(||x||_hw) + eps)``. Both
    parameters start at zero, so a new layer is the identity.

    Args:
        dim: Number of channels.

    Shape:
        Input and output: ``(N, H, W, dim)``.
    """

    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_integer('dim', dim, at_least=1)
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, hidden_states: Tensor) -> Tensor:
        # A sum of squares over a whole feature map overflows half precision, and so does the
        # product of a large activation and its response.
        hidden = hidden_states.to(wide(hidden_states.dtype))
        norm = torch.linalg.vector_norm(hidden, dim=(1, 2), keepdim=True)
        response = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)
        output = self.weight * (hidden * response) + self.bias + hidden
        return output.to(torch.promote_types(hidden_states.dtype, self.weight.dtype))


fused_replaces(ConvNextGRN, 'forward')
