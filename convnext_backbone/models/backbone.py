"""The backbone: feature maps of several stages for necks and heads of OpenMMLab models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..arch import Variant, resolve_arch
from ..checkpoint.names import listed
from .base import ConvNextBase
from .deployed import DeployedBackbone
from .freezing import FrozenInOneLine
from .fusion import has_hooks
from .norms import make_norm
from .out_features import resolve_out_features


@dataclass
class ConvNextBackboneOutput:
    """The output of :class:`ConvNextBackbone` with ``return_dict=True``.

    Attributes:
        feature_maps: The normalised feature maps of ``out_features``, each ``(N, C, H, W)``.
        hidden_states: The outputs of the stem and of every built stage before the norms, or None
            if not requested.
    """

    feature_maps: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None


@MODELS.register_module()
class ConvNextBackbone(ConvNextBase):
    """ConvNeXt or ConvNeXt V2 as a feature extractor.

    Each feature map has its own channels-first norm and is contiguous in NCHW. Stages deeper than
    the deepest requested one are not built. The names in the state dict are those of Hugging Face's
    ``ConvNextBackbone`` and ``ConvNextV2Backbone``. Loading ignores stages and norms that this
    backbone does not have.

    Args:
        arch: As in :class:`ConvNextBase`. Default: ``'tiny'``.
        out_features: Names of the feature maps to return, from ``stage_names``, in the same order.
        out_indices: The same by index: 0 is stage1, negative indices count from the last stage. If
            neither is given, the last stage is returned; if both are given, they must agree.
        frozen_stages: -1 freezes nothing (default), 0 the stem, k the stem and the first k stages.
            Frozen parts get no gradients and stay in eval mode. The norms of the feature maps stay
            trainable.
        **base_args: The other arguments of :class:`ConvNextBase`: ``num_channels``,
            ``patch_size``, ``kernel_size``, ``stem``, ``norm``, ``hidden_act``, ``use_grn``,
            ``drop_path_rate``, ``layer_scale_init_value``, ``norm_eps``, ``layer_norm_eps``,
            ``with_cp``, ``adapt_stem``, ``output_stride``, ``fused``, ``prefer``, ``init_cfg``.

    Attributes:
        stage_names: ``('stem', 'stage1', ..., 'stageN')`` of the architecture.
        num_features: Number of channels of each of ``stage_names``.
        out_features: Names of the returned feature maps.
        out_indices: Their indices, 0 for stage1; the stem has no index.
        channels: Number of channels of each returned feature map: a neck's ``in_channels``.
        strides: Stride of each returned feature map in pixels.

    Raises:
        ValueError: If an argument has a wrong value; the message says which values are allowed.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        *,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        **base_args,
    ) -> None:
        stage_names = resolve_arch(arch).stage_names
        names = resolve_out_features(stage_names, out_features, out_indices)
        picks = [stage_names.index(name) for name in names]
        # True and 1.0 are in a range, too.
        if type(frozen_stages) is not int or frozen_stages not in range(-1, len(stage_names)):
            raise ValueError(
                f'frozen_stages must be between -1 (nothing) and {len(stage_names) - 1} (the stem '
                f'and all stages), got {frozen_stages!r}'
            )
        super().__init__(arch, num_stages=picks[-1], **base_args)
        self.stage_names, self.out_features = stage_names, names
        self.frozen_stages = frozen_stages
        self.num_features = [self.arch.hidden_sizes[0], *self.arch.hidden_sizes]
        self.out_indices = tuple(i - 1 for i in picks if i > 0)
        self.channels = [self.num_features[i] for i in picks]
        strides = [self.patch_size, *self.strides_of_stages]
        self.strides = [strides[i] for i in picks]
        self.hidden_states_norms = nn.ModuleDict(
            {
                name: make_norm(
                    self.arch.variant.norm,
                    channels,
                    eps=self.arch.norm_eps,
                    data_format='channels_first',
                    contiguous=True,
                    fused=base_args.get('fused'),
                )
                for name, channels in zip(names, self.channels, strict=True)
            }
        )
        layer_norm_eps = base_args.get('layer_norm_eps')
        if layer_norm_eps not in (None, self.arch.norm_eps):
            warnings.warn(
                f'layer_norm_eps={layer_norm_eps} is for the norm of pooled features, which '
                f'ConvNextBackbone does not have: its norms have norm_eps={self.arch.norm_eps}',
                stacklevel=2,
            )
        self._freeze_stages()
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        if frozen:
            line = FrozenInOneLine(type(self).__name__, tuple(frozen))
            MMLogger.get_current_instance().addFilter(line)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, return_dict: bool = False
    ) -> tuple[Tensor, ...] | ConvNextBackboneOutput:
        """Computes the feature maps of ``out_features``.

        Args:
            pixel_values: Normalised images of shape ``(N, num_channels, H, W)`` with H and W of at
                least the largest of ``strides``; N may be 0.
            output_hidden_states: Whether to also return the hidden states; this needs
                ``return_dict=True``. Default: False.
            return_dict: Whether to return a :class:`ConvNextBackboneOutput`. Default: False.

        Returns:
            A tuple of feature maps in stage order, each ``(N, channels[i], H // strides[i],
            W // strides[i])``, or the same in a :class:`ConvNextBackboneOutput`. An overlapping
            stem rounds its sides up.

        Raises:
            ValueError: As :meth:`ConvNextBase.extract_hidden_states`, or if hidden states are
                requested without ``return_dict=True``.
            TypeError: As :meth:`ConvNextBase.extract_hidden_states`.
        """
        if output_hidden_states and not return_dict:
            raise ValueError(f'output_hidden_states=True needs return_dict=True, got {return_dict}')
        hidden_states = self.extract_hidden_states(pixel_values)
        # The norms return contiguous feature maps: mmcv's RoIAlign reads all memory as NCHW.
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

    def deploy(self, dtype: torch.dtype = torch.float32) -> DeployedBackbone:
        """Builds a module for inference alone, which is faster and gives the same maps.

        Layer scales and the parameters of most norms are folded into the layers after them, and
        weights are converted and packed once. The module has copies: later changes of this
        backbone, such as training or loading, do not change it.

        Args:
            dtype: ``torch.float32`` (default): the maps agree within 1e-5. ``torch.bfloat16``:
                everything is computed in bfloat16, except sums and the statistics of norms.

        Raises:
            ValueError: If the dtype is another one, if the backbone has another ``kernel_size``,
                ``stem`` or ``norm`` than the default or an ``output_stride`` that dilates stages,
                if a block has other modules than it was built with or another activation than
                GELU, or if hooks are registered on any part or its forward was replaced.
        """
        hooked = [name or 'itself' for name, part in self.named_modules() if has_hooks(part)]
        if hooked:
            raise ValueError(
                f'the backbone cannot be deployed, it would not run the hooks on {listed(hooked)}: '
                'remove them first'
            )
        is_replaced = any('forward' in part.__dict__ for part in self.modules())
        if is_replaced or type(self).forward is not ConvNextBackbone.forward:
            raise ValueError('the backbone cannot be deployed: its forward was replaced')
        if self.arch.variant != Variant():
            raise ValueError(
                f'the backbone cannot be deployed with {self.arch.variant}: the functions for '
                "inference alone have kernel_size=7, stem='patch' and norm='layernorm'"
            )
        return DeployedBackbone(
            self.embeddings,
            self.encoder.stages,  # type: ignore[arg-type]
            self.hidden_states_norms,
            dtype,
        )

    def train(self, mode: bool = True) -> ConvNextBackbone:
        """Sets the training mode; frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.embeddings, *self.encoder.stages[: self.frozen_stages]):
            module.eval().requires_grad_(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> ConvNextBackbone:
        """Warns if the backbone is moved to channels_last."""
        was_channels_last = self._is_channels_last()
        super()._apply(fn, recurse)
        if not was_channels_last:
            self._warn_if_channels_last()
        return self

    def __setstate__(self, state: dict) -> None:
        """Warns if a backbone in channels_last is copied or unpickled."""
        super().__setstate__(state)
        self._warn_if_channels_last()

    def _warn_if_channels_last(self) -> None:
        if self._is_channels_last():
            warnings.warn(
                'ConvNextBackbone was moved to channels_last. Its feature maps are still '
                'contiguous in NCHW, so this is safe if the backbone was moved alone: '
                'model.backbone.to(memory_format=torch.channels_last). If the neck was also moved, '
                "its feature maps are channels_last, and mmcv's RoIAlign reads those wrongly "
                'without an error: losses decrease, but AP stays 0. ConvNextSetupHook stops such '
                'runs, and convnext_backbone.engine.check_layout(detector) such predictions.',
                stacklevel=3,
            )

    def _is_channels_last(self) -> bool:
        return any(is_channels_last(p) for p in self.parameters())


def is_channels_last(weight: Tensor) -> bool:
    """Whether the weight of a 2-D convolution is in channels_last, and not also in NCHW."""
    if weight.ndim != 4 or weight.shape[1] == 1:
        return False
    # Kernels of 1x1 count as contiguous in both layouts, but convolutions look at the strides.
    return weight.stride(1) == 1 and weight.stride(3) == weight.shape[1]
