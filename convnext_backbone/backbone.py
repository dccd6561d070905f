"""The backbone: multi-stage feature maps for the necks of OpenMMLab detectors and segmenters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .arch import resolve_arch
from .checkpoint import Architecture, LoadsAnyCheckpoint, Target
from .encoder import ConvNextEncoder
from .layers import ConvNextEmbeddings, ConvNextLayerNorm
from .out_features import resolve_out_features
from .trunk import check_images, init_weights


@dataclass
class ConvNextBackboneOutput:
    """What :class:`ConvNextBackbone` returns with ``return_dict=True``.

    Attributes:
        feature_maps: The normalised maps of ``out_features``, each ``(N, C, H, W)``.
        hidden_states: The stem's and every built stage's output before the map norms, or None when
            they were not asked for.
    """

    feature_maps: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None


@MODELS.register_module()
class ConvNextBackbone(LoadsAnyCheckpoint, BaseModule):
    """ConvNeXt or ConvNeXt V2 as a feature extractor.

    Every map has a channels-first norm of its own and leaves contiguous in NCHW. Stages deeper than
    the deepest one asked for are not built. State-dict names are those of Hugging Face's
    ``ConvNextBackbone`` and ``ConvNextV2Backbone``, but tensors are loaded by any naming of
    :data:`convnext_backbone.checkpoint.formats.FORMATS`; of them, those of stages and norms that
    this backbone leaves out are passed over. Stem and stages are loaded as a whole or not at all.

    Args:
        arch: A name of :data:`convnext_backbone.arch.ARCHS` (``'atto'`` ... ``'xlarge'``,
            ``'v2-atto'`` ... ``'v2-huge'``) or ``dict(depths=..., hidden_sizes=...)``.
            Default: ``'tiny'``.
        num_channels: Channels of the images. Default: 3.
        patch_size: Stride of the stem in pixels. Default: 4.
        hidden_act: One of ``gelu`` (default), ``gelu_new``, ``relu``, ``silu``.
        use_grn: Whether the blocks are those of ConvNeXt V2, with global response normalisation in
            place of layer scale. Default: None, as ``arch`` says.
        drop_path_rate: Stochastic depth of the last block; rates rise linearly from 0 over all
            blocks. Default: 0.
        layer_scale_init_value: Start of the layer scale; 0 or None builds none, nor do V2 blocks.
            Default: 1e-6.
        out_features: Names of the maps to return, of ``stage_names``, in order.
        out_indices: The same by index: 0 is stage1, negative ones count from the last stage. With
            neither given, the last stage is returned; given both, they must agree.
        frozen_stages: -1 freezes nothing (default), 0 the stem, k the stem and the first k stages:
            no gradients, and eval mode whatever ``train()`` says. Map norms stay trainable.
        with_cp: Whether each block recomputes its activations in the backward pass instead of
            keeping them. Default: False.
        adapt_stem: Whether a checkpoint of RGB images may be loaded with other ``num_channels``:
            the stem's weights are summed for one channel, for more they are tiled and scaled by
            3 / num_channels. Default: False, which makes it an error.
        init_cfg: As everywhere in mmengine; ``dict(type='Pretrained', checkpoint=..., prefix=...)``
            takes all that :func:`convnext_backbone.load_checkpoint` does. Default: None, which
            leaves the paper's initialisation: convolutions and linear layers from a truncated
            normal of deviation 0.02, biases 0, norms 1.

    Attributes:
        stage_names: ``('stem', 'stage1', ..., 'stageN')`` of the architecture.
        num_features: Channels of all of ``stage_names``.
        out_features: Names of the returned maps.
        out_indices: Their indices, 0 for stage1; the stem, if returned, has none.
        channels: Channels of the returned maps, ready for a neck's ``in_channels``.
        strides: Strides of the returned maps in pixels.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message says what is.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        num_channels: int = 3,
        patch_size: int = 4,
        hidden_act: str = 'gelu',
        use_grn: bool | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        adapt_stem: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        architecture = resolve_arch(arch, use_grn)
        depths, hidden_sizes = architecture.depths, architecture.hidden_sizes
        if architecture.use_grn:
            layer_scale_init_value = None
        self.architecture = Architecture(architecture, has_layer_scale=bool(layer_scale_init_value))
        self.adapt_stem = adapt_stem

        self.stage_names = ('stem', *(f'stage{i + 1}' for i in range(len(depths))))
        self.num_features = [hidden_sizes[0], *hidden_sizes]
        self.out_features = resolve_out_features(self.stage_names, out_features, out_indices)
        picks = [self.stage_names.index(name) for name in self.out_features]
        self.out_indices = tuple(i - 1 for i in picks if i > 0)
        self.channels = [self.num_features[i] for i in picks]
        self.strides = [patch_size * 2 ** max(i - 1, 0) for i in picks]
        if frozen_stages not in range(-1, len(self.stage_names)):
            raise ValueError(
                f'frozen_stages must lie between -1 (nothing) and {len(depths)} (the stem and all '
                f'stages), got {frozen_stages!r}'
            )
        self.frozen_stages = frozen_stages

        self.embeddings = ConvNextEmbeddings(num_channels, hidden_sizes[0], patch_size)
        self.encoder = ConvNextEncoder(
            depths,
            hidden_sizes,
            drop_path_rate=drop_path_rate,
            num_stages=picks[-1],
            hidden_act=hidden_act,
            use_grn=architecture.use_grn,
            layer_scale_init_value=layer_scale_init_value,
            with_cp=with_cp,
        )
        self.hidden_states_norms = nn.ModuleDict(
            {
                name: ConvNextLayerNorm(channels, data_format='channels_first', contiguous=True)
                for name, channels in zip(self.out_features, self.channels, strict=True)
            }
        )
        self.apply(init_weights)
        self._freeze_stages()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, return_dict: bool = False
    ) -> tuple[Tensor, ...] | ConvNextBackboneOutput:
        """Extracts the maps of ``out_features``.

        Args:
            pixel_values: Normalised images of shape ``(N, num_channels, H, W)`` with H and W not
                below the largest of ``strides``; N may be 0.
            output_hidden_states: Whether the output also holds the hidden states; they need
                ``return_dict=True`` to be carried. Default: False.
            return_dict: Whether to return a :class:`ConvNextBackboneOutput`. Default: False.

        Returns:
            A tuple of maps in stage order, each ``(N, channels[i], H // strides[i],
            W // strides[i])``, or the same in a :class:`ConvNextBackboneOutput`.

        Raises:
            ValueError: If the images have another rank, number of channels or a smaller size than
                allowed, or if hidden states are asked for without ``return_dict=True``.
            TypeError: If the images are no tensor of real floating-point numbers.
        """
        check_images(pixel_values, self.strides[-1], self.out_features[-1])
        if output_hidden_states and not return_dict:
            raise ValueError('output_hidden_states=True needs return_dict=True to return them')
        hidden_states = self.encoder(self.embeddings(pixel_values), output_hidden_states=True)
        # Their norms make maps contiguous: mmcv's RoIAlign reads the memory of any map as NCHW.
        feature_maps = tuple(
            self.hidden_states_norms[name](hidden_state)
            for name, hidden_state in zip(self.stage_names, hidden_states, strict=False)
            if name in self.out_features
        )
        if not return_dict:
            return feature_maps
        if not output_hidden_states:
            return ConvNextBackboneOutput(feature_maps)
        return ConvNextBackboneOutput(feature_maps, tuple(h.contiguous() for h in hidden_states))

    def train(self, mode: bool = True) -> ConvNextBackbone:
        """Sets the training mode, except that frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def checkpoint_target(self) -> Target:
        """What the loading of checkpoints needs to know of the model."""
        left_out = {
            f'encoder.stages.{i}.': 'deeper stages'
            for i in range(len(self.encoder.stages), len(self.stage_names) - 1)
        }
        left_out |= {
            f'hidden_states_norms.{name}.': 'norms of maps not asked for'
            for name in self.stage_names
            if name not in self.out_features
        }
        return Target(
            name=type(self).__name__,
            architecture=self.architecture,
            tensors=self.state_dict(),
            left_out={**left_out, 'layernorm.': 'final norm', 'classifier.': 'head'},
            adapt_stem=self.adapt_stem,
        )

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.embeddings, *self.encoder.stages[: self.frozen_stages]):
            module.eval().requires_grad_(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> ConvNextBackbone:
        """Warns when ``.to(memory_format=torch.channels_last)`` passes by."""
        was_channels_last = self._is_channels_last()
        super()._apply(fn, recurse)
        if self._is_channels_last() and not was_channels_last:
            warnings.warn(
                'ConvNextBackbone was moved to channels_last. Its maps still leave contiguous in '
                'NCHW, so all is well if it moved alone: '
                'model.backbone.to(memory_format=torch.channels_last). But a neck moved with it '
                "makes channels_last maps of them, and mmcv's RoIAlign reads those wrongly without "
                'an error: losses fall, AP stays 0.',
                stacklevel=2,
            )
        return self

    def _is_channels_last(self) -> bool:
        return any(
            p.ndim == 4
            and p.is_contiguous(memory_format=torch.channels_last)
            and not p.is_contiguous()
            for p in self.parameters()
        )
