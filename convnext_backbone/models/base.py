"""The base class of the backbone and the pooled model: stem, encoder, checks, initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..arch import Variant, one_or_per_stage, resolve_arch
from ..checkpoint import LoadsAnyCheckpoint, Target
from .checks import (
    check_finite,
    check_flag,
    check_init_cfg,
    check_integer,
    check_positive,
    kernel_size_of_stages,
)
from .embeddings import ConvNextEmbeddings
from .encoder import ConvNextEncoder


class ConvNextBase(LoadsAnyCheckpoint):
    """Stem and stages of ConvNeXt or ConvNeXt V2, the base class of the models.

    The names in the state dict are those of Hugging Face's models. Checkpoints in any format of
    :data:`convnext_backbone.checkpoint.formats.FORMATS` load completely or not at all.

    Args:
        arch: A name of :data:`convnext_backbone.arch.ARCHS` (``'atto'`` ... ``'xxlarge'``,
            ``'v2-atto'`` ... ``'v2-huge'``) or ``dict(depths=..., hidden_sizes=...)``.
            Default: ``'tiny'``.
        num_channels: Number of image channels. Default: 3.
        patch_size: Stride of the stem in pixels. Default: 4.
        kernel_size: Side of the kernels of the depthwise convolutions: an odd number, or one per
            stage. Default: 7. Blocks run fused only with 7.
        stem: ``'patch'`` (default), or a stem of timm's ``_ols`` models with two convolutions of
            3x3 and stride 2: ``'overlap'``, ``'overlap_tiered'`` (the first one has about half of
            the channels) or ``'overlap_act'`` (with an activation between them).
        norm: The kind of all norms. Default: ``'layernorm'``. ``'rmsnorm'`` (timm's ``atto_rms``)
            divides by the root of the mean square, ``'simplenorm'`` (timm's ``zepto_rms``) by the
            standard deviation. These two subtract no mean, have no bias and do not run fused.
        hidden_act: One of ``gelu`` (default), ``gelu_new``, ``relu``, ``silu``.
        use_grn: Whether the blocks are ConvNeXt V2 blocks, with global response normalisation
            instead of layer scale. Default: None, which follows ``arch``.
        drop_path_rate: Stochastic depth rate of the last block; the rates of all blocks increase
            linearly from 0. Default: 0.
        layer_scale_init_value: Initial value of the layer scale. With 0 or None there is no layer
            scale; V2 blocks never have one. Default: 1e-6.
        norm_eps: Added to the variance by the norms of stem, downsamplings, blocks and feature
            maps. Default: None, the number of the architecture: 1e-5 for ``'xxlarge'``, 1e-6 for
            all others.
        layer_norm_eps: Added to the variance by the norm of the pooled features, as in Hugging
            Face. Default: None, the number of the architecture: 1e-5 for ``'xxlarge'``, 1e-12 for
            all others. The backbone has no such norm. It takes the argument as the result of
            :func:`convnext_backbone.infer_arch` may contain it.
        with_cp: Whether each block recomputes its activations in the backward pass instead of
            keeping them (gradient checkpointing). Default: False.
        adapt_stem: Whether a checkpoint for RGB images may be loaded with another ``num_channels``:
            the stem's weights are summed for one channel; otherwise they are tiled and scaled by
            3 / num_channels. Its patch size may be a multiple of ``patch_size``, too: the weights
            are summed to those of the original stem on images enlarged by that factor.
            Default: False, which makes both an error.
        output_stride: Stride of the last stage. Stages that would have a larger one keep their
            resolution, and their depthwise convolutions are dilated instead, as semantic
            segmentation needs it. Weights stay the same. Default: None, 8 times ``patch_size``
            with four stages.
        fused: True runs blocks and norms as fused functions if possible. False always runs their
            modules (for debugging and comparisons). Default: None, which
            follows the environment variable ``CONVNEXT_FUSED`` (``1`` or ``0``; on if it is not
            set).
        prefer: What counts on a GPU: ``'speed'`` (default) runs fused blocks or their modules,
            whichever is faster; with ``'memory'``, blocks that train run fused even if the modules
            are faster.
        num_stages: Number of stages to build, from the first one; subclasses set it. Default: None,
            all.
        init_cfg: As in mmengine; ``dict(type='Pretrained', checkpoint=..., prefix=...)`` accepts
            every source of :func:`convnext_backbone.load_checkpoint`. Default: None, the
            initialisation of the paper: weights of convolutions and linear layers from a truncated
            normal distribution with standard deviation 0.02, weights of norms 1, biases 0.

    Attributes:
        arch: The :class:`convnext_backbone.arch.Arch`.
        patch_size: Stride of the stem in pixels.
        hidden_act: Name of the activation.
        stride: Stride of the deepest built stage in pixels. Images must not be smaller.

    Raises:
        ValueError: If an argument has a wrong value; the message says which values are allowed.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        *,
        num_channels: int = 3,
        patch_size: int = 4,
        kernel_size: int | Sequence[int] = 7,
        stem: str = 'patch',
        norm: str = 'layernorm',
        hidden_act: str = 'gelu',
        use_grn: bool | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        norm_eps: float | None = None,
        layer_norm_eps: float | None = None,
        with_cp: bool = False,
        adapt_stem: bool = False,
        output_stride: int | None = None,
        fused: bool | None = None,
        prefer: str = 'speed',
        num_stages: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        check_integer('num_channels', num_channels, at_least=1)
        check_integer('patch_size', patch_size, at_least=1)
        check_flag('use_grn', use_grn, optional=True)
        check_finite('layer_scale_init_value', layer_scale_init_value)
        check_positive('norm_eps', norm_eps)
        check_positive('layer_norm_eps', layer_norm_eps)
        check_flag('with_cp', with_cp)
        check_flag('adapt_stem', adapt_stem)
        check_init_cfg(init_cfg)
        super().__init__(init_cfg=init_cfg)
        found = resolve_arch(arch, use_grn, has_layer_scale=bool(layer_scale_init_value))
        kernel_sizes = kernel_size_of_stages(kernel_size, len(found.depths))
        self.arch = replace(
            found,
            variant=Variant(one_or_per_stage(kernel_sizes), stem, norm),
            norm_eps=norm_eps or found.norm_eps,
            final_norm_eps=layer_norm_eps or found.final_norm_eps,
        )
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.adapt_stem = adapt_stem
        self.embeddings = ConvNextEmbeddings(
            num_channels,
            self.arch.hidden_sizes[0],
            patch_size,
            norm_eps=self.arch.norm_eps,
            fused=fused,
            stem=stem,
            norm=norm,
            hidden_act=hidden_act,
        )
        self.encoder = ConvNextEncoder(
            self.arch.depths,
            self.arch.hidden_sizes,
            drop_path_rate=drop_path_rate,
            max_stride=_max_stride(output_stride, patch_size, len(self.arch.depths)),
            num_stages=num_stages,
            kernel_sizes=kernel_sizes,
            norm=norm,
            hidden_act=hidden_act,
            use_grn=self.arch.use_grn,
            layer_scale_init_value=layer_scale_init_value if self.arch.has_layer_scale else None,
            norm_eps=self.arch.norm_eps,
            with_cp=with_cp,
            fused=fused,
            prefer=prefer,
        )
        self.strides_of_stages = [patch_size * stride for stride in self.encoder.strides]
        self.stride = max(self.strides_of_stages, default=patch_size)
        self.apply(initialize)

    def extract_hidden_states(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Checks the images and returns the outputs of the stem and of every built stage.

        Args:
            pixel_values: Normalised images of shape ``(N, num_channels, H, W)`` with H and W of at
                least ``stride``; N may be 0.

        Returns:
            The output of the stem, then of each built stage, each ``(N, C, H, W)``.

        Raises:
            ValueError: If the images do not have four dimensions, have another number of channels
                or are too small.
            TypeError: If the images are not a floating-point tensor.
        """
        deepest = self.arch.stage_names[len(self.encoder.stages)]
        check_images(pixel_values, self.stride, deepest)
        return self.encoder(self.embeddings(pixel_values), output_hidden_states=True)

    def checkpoint_target(self) -> Target:
        """Describes the model for the loading of checkpoints."""
        return Target(
            name=type(self).__name__,
            arch=self.arch,
            tensors=self.state_dict(),
            adapt_stem=self.adapt_stem,
            settings=dict(
                num_channels=self.embeddings.num_channels,
                patch_size=self.patch_size,
                hidden_act=self.hidden_act,
                norm_eps=self.arch.norm_eps,
            ),
        )


def _max_stride(output_stride: int | None, patch_size: int, num_stages: int) -> int | None:
    """Returns the largest stride relative to the stem, or None."""
    allowed = [patch_size * 2**i for i in range(num_stages)]
    if output_stride is None:
        return None
    if type(output_stride) is not int or output_stride not in allowed[1:]:
        raise ValueError(
            f'output_stride must be one of {allowed[1:]} for patch_size={patch_size} and '
            f'{num_stages} stages, got {output_stride!r}'
        )
    return output_stride // patch_size


def initialize(module: nn.Module) -> None:
    """Initialises convolutions and linear layers as the official code does; skips other modules."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_images(pixel_values: Tensor, smallest: int, deepest: str) -> None:
    """Refuses everything but a batch of images that are large enough.

    Args:
        pixel_values: The images.
        smallest: Least height and width in pixels.
        deepest: Name of the stage that needs it, for the message.

    Raises:
        ValueError: If the images do not have four dimensions or are too small.
        TypeError: If they are not an ordinary floating-point tensor.
    """
    if not isinstance(pixel_values, Tensor):
        raise TypeError(f'the images must be a tensor, got {type(pixel_values).__name__}')
    if pixel_values.is_nested or pixel_values.layout is not torch.strided:
        layout = 'nested' if pixel_values.is_nested else pixel_values.layout
        raise TypeError(
            f'the images must be an ordinary tensor, got one with layout {layout}: '
            'convert sparse images with to_dense(), and pad nested images to one size'
        )
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
            f'resize or pad them to at least {smallest}x{smallest}'
        )
