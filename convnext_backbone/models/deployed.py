"""A backbone for inference alone: folded, converted and packed once, and frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import map_norm, pick_kernels, wide
from ..ops.block import split_rows
from ..ops.grn import Response
from ..ops.packed import PackedLinear
from .base import check_images
from .blocks import ConvNextLayer
from .embeddings import ConvNextEmbeddings
from .encoder import ConvNextStage
from .norms import ConvNextGRN, ConvNextLayerNorm

T = TypeVar('T', bound=nn.Module)

_NOT_SAVED = (
    'a deployed backbone cannot be copied or saved, its weights are packed for this processor: '
    'copy or save the ConvNextBackbone and call deploy() again'
)


class DeployedBackbone(nn.Module):
    """Feature maps of a :class:`ConvNextBackbone`, as :meth:`ConvNextBackbone.deploy` builds it.

    It has copies of the weights: later changes of the backbone do not change it. It has no
    parameters, cannot be trained, copied, saved or moved to another device or dtype, and needs no
    autocast.

    Args:
        embeddings: The stem.
        stages: The stages.
        norms: The norms of the feature maps, by name; ``'stem'`` is that of the stem.
        dtype: ``torch.float32`` or ``torch.bfloat16``: the dtype of all products, and of the
            feature maps between and after the stages.

    Raises:
        ValueError: If the dtype is another one, or if a part cannot be folded: an activation other
            than GELU, a replaced module, tensors that are not on one device.
    """

    def __init__(
        self,
        embeddings: ConvNextEmbeddings,
        stages: Iterable[ConvNextStage],
        norms: nn.ModuleDict,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f'dtype must be torch.float32 or torch.bfloat16, got {dtype}')
        _check_parts(embeddings, *stages, *norms.values())
        self.dtype = dtype
        self.num_channels = embeddings.num_channels
        with torch.no_grad():
            conv = embeddings.patch_embeddings
            self.stem = _Patches(conv, None, dtype)  # type: ignore[arg-type]
            self.stem_norm = _Norm(embeddings.layernorm)
            self.stages = [_Stage(stage, dtype) for stage in stages]
            self.stride = self.stem.side
            for stage in self.stages:
                self.stride *= stage.downsampling.side if stage.downsampling else 1
            names = ('stem', *(f'stage{i}' for i in range(1, len(self.stages) + 1)))
            self.norms = [
                _Norm(norms[name]) if name in norms else None  # type: ignore[arg-type]
                for name in names
            ]
        self.eval()

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            pixel_values: Normalised images of shape ``(N, num_channels, H, W)``.

        Returns:
            The feature maps, each ``(N, C, H, W)``, contiguous, in ``dtype``.

        Raises:
            ValueError: If the images have another number of channels, do not have four dimensions
                or are too small.
            TypeError: If the images are not a floating-point tensor.
        """
        check_images(pixel_values, self.stride, f'stage{len(self.stages)}')
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f'the images must be of shape (N, {self.num_channels}, H, W), '
                f'got {tuple(pixel_values.shape)}'
            )
        if len(pixel_values) == 0:
            one = pixel_values.new_zeros(1, *pixel_values.shape[1:])
            return tuple(features[:0].contiguous() for features in self(one))
        with torch.autocast(pixel_values.device.type, enabled=False):
            features = self.stem(pixel_values.to(self.dtype).permute(0, 2, 3, 1))
            features = self.stem_norm(features, channels_first=False)
            maps = [] if self.norms[0] is None else [self.norms[0](features, channels_first=True)]
            for stage, norm in zip(self.stages, self.norms[1:], strict=True):
                features = stage(features)
                if norm is not None:
                    maps.append(norm(features, channels_first=True))
        return tuple(maps)

    def train(self: T, mode: bool = True) -> T:
        """Raises a RuntimeError for ``mode=True``."""
        if mode:
            raise RuntimeError(
                'a deployed backbone cannot be trained: train the ConvNextBackbone and call '
                'deploy() again'
            )
        return super().train(mode)

    def state_dict(self, *args, **kwargs):
        """Raises a RuntimeError: it would be empty."""
        raise RuntimeError(_NOT_SAVED)

    def __reduce_ex__(self, protocol):
        raise RuntimeError(_NOT_SAVED)

    def _apply(self, fn, recurse: bool = True):
        raise RuntimeError(
            'a deployed backbone cannot be moved or converted: move the ConvNextBackbone and call '
            'deploy(dtype) again'
        )


def _check_parts(*parts: nn.Module) -> None:
    """Refuses parts of another class, or with other layers, than the backbone was built with."""
    for part in parts:
        if type(part) not in (ConvNextEmbeddings, ConvNextStage, ConvNextLayerNorm):
            raise ValueError(
                f'the backbone cannot be deployed: a part is now {type(part).__name__}'
            )
        if isinstance(part, ConvNextStage):
            layers = {type(layer) for layer in part.layers}
            if layers != {ConvNextLayer} or len(part.downsampling_layer) not in (0, 2):
                raise ValueError(
                    'the backbone cannot be deployed: a stage has other layers than it was built '
                    'with'
                )


class _Norm:
    def __init__(self, norm: ConvNextLayerNorm) -> None:
        if type(norm) is not ConvNextLayerNorm or norm.weight is None or norm.bias is None:
            raise ValueError(f'the backbone cannot be deployed: a norm is now {norm}')
        self.weight, self.bias = norm.weight.float().clone(), norm.bias.float().clone()
        self.eps = norm.eps

    def __call__(self, features: Tensor, channels_first: bool) -> Tensor:
        return map_norm(features, self.weight, self.bias, self.eps, channels_first)


class _Patches:
    """A convolution whose stride is its kernel size, after a norm without its own parameters."""

    def __init__(self, conv: nn.Conv2d, norm: ConvNextLayerNorm | None, dtype: torch.dtype) -> None:
        if type(conv) is nn.Conv2d and conv.stride != conv.kernel_size:
            raise ValueError(
                'the backbone cannot be deployed with output_stride: there are no functions for '
                'inference alone of dilated stages'
            )
        if type(conv) is not nn.Conv2d or conv.bias is None or not _is_plain(conv):
            raise ValueError(f'the backbone cannot be deployed: a convolution is now {conv}')
        self.side = conv.kernel_size[0]
        weight = conv.weight.float().permute(0, 2, 3, 1)  # (out, side, side, in)
        bias = conv.bias.float()
        self.eps = None
        if norm is not None:
            affine = _Norm(norm)
            bias = bias + weight.sum((1, 2)) @ affine.bias
            weight = weight * affine.weight
            self.eps = affine.eps
        self.linear = PackedLinear(weight.flatten(1), bias, dtype)

    def __call__(self, features: Tensor) -> Tensor:
        side = self.side
        batch, height, width, channels = features.shape
        height, width = height // side, width // side
        features = features[:, : height * side, : width * side]
        if self.eps is not None:
            normed = F.layer_norm(features.to(wide(features.dtype)), (channels,), eps=self.eps)
            features = normed.to(features.dtype)
        patches = features.reshape(batch, height, side, width, side, channels)
        rows = patches.transpose(2, 3).reshape(-1, side * side * channels)
        return self.linear(rows).view(batch, height, width, -1)


def _is_plain(conv: nn.Conv2d) -> bool:
    return (conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)


class _Stage:
    def __init__(self, stage: ConvNextStage, dtype: torch.dtype) -> None:
        self.downsampling = None
        if len(stage.downsampling_layer):
            norm, conv = stage.downsampling_layer
            self.downsampling = _Patches(conv, norm, dtype)  # type: ignore[arg-type]
        self.blocks = [_Block(layer, dtype) for layer in stage.layers]  # type: ignore[arg-type]

    def __call__(self, features: Tensor) -> Tensor:
        if self.downsampling is not None:
            features = self.downsampling(features)
        for block in self.blocks:
            features = block(features)
        return features


class _Block:
    """A block whose linear layers contain its layer scale and the parameters of its norm.

    ``W1 (n * w + b) + b1 = (W1 w) n + (W1 b + b1)`` for the parameters ``w`` and ``b`` of the norm,
    ``s (W2 h + b2) = (s W2) h + s b2`` for the layer scale ``s``.
    """

    def __init__(self, layer: ConvNextLayer, dtype: torch.dtype) -> None:
        obstacle = layer.obstacle()
        if obstacle is not None:
            raise ValueError(f'the backbone cannot be deployed: {obstacle}')
        self.dtype, self.norm_eps = dtype, layer.layernorm.eps
        conv, norm, grn = layer.dwconv, layer.layernorm, layer.grn
        self.taps = conv.weight.float().flatten(1).t().contiguous()
        self.bias = conv.bias.float().clone()  # type: ignore[union-attr]  # obstacle() finds None
        self.ones, self.zeros = torch.ones_like(self.bias), torch.zeros_like(self.bias)
        weight1, bias1 = layer.pwconv1.weight.float(), layer.pwconv1.bias.float()
        weight2, bias2 = layer.pwconv2.weight.float(), layer.pwconv2.bias.float()
        bias1 = bias1 + weight1 @ norm.bias.float()
        self.linear1 = PackedLinear(weight1 * norm.weight.float(), bias1, dtype, gelu=True)
        self.grn: tuple[Tensor, Tensor, float] | None = None
        if isinstance(grn, ConvNextGRN):
            weight, bias = (p.float().flatten().clone() for p in (grn.weight, grn.bias))
            self.grn = weight, bias, grn.eps
        if layer.layer_scale_parameter is not None:
            scale = layer.layer_scale_parameter.float()
            weight2, bias2 = weight2 * scale[:, None], bias2 * scale
        self.linear2 = PackedLinear(weight2, bias2, dtype)

    def __call__(self, features: Tensor) -> Tensor:
        kernels = pick_kernels(features, self.dtype)
        normed, _ = kernels.depthwise_norm(
            *(features, self.taps, self.bias, self.ones, self.zeros),
            *(self.norm_eps, self.dtype, False),
        )
        rows, normed = features.view(-1, features.shape[-1]), normed.view(-1, features.shape[-1])
        sample_rows = len(rows) // len(features)
        # The input is not needed any more, so the output replaces it.
        for part in split_rows(rows, self.dtype, 1 if self.grn is None else sample_rows):
            hidden = self.linear1(normed[part])
            if self.grn is not None:
                num_samples = len(hidden) // sample_rows
                hidden = Response(kernels, *self.grn, hidden, num_samples).rescaled()
            rows[part] += self.linear2(hidden)
        return features
