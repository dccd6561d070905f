"""The pooled model: one feature vector per image, for image classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mmengine.registry import MODELS
from torch import Tensor

from ..checkpoint import Target
from .base import ConvNextBase
from .norms import make_norm


@dataclass
class ConvNextModelOutput:
    """The output of :class:`ConvNextModel`, with the names of Hugging Face.

    Attributes:
        last_hidden_state: The output of the last stage, ``(N, C, H, W)``.
        pooler_output: Its mean over H and W, normalised, ``(N, C)``.
        hidden_states: The outputs of the stem and of every stage, or None if not requested.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@MODELS.register_module()
class ConvNextModel(ConvNextBase):
    """ConvNeXt or ConvNeXt V2 up to the pooled features.

    The names in the state dict are those of Hugging Face's ``ConvNextModel`` and
    ``ConvNextV2Model``. A checkpoint must have a final norm.

    Args:
        arch: As in :class:`ConvNextBase`. Default: ``'tiny'``.
        **base_args: The other arguments of :class:`ConvNextBase`: ``num_channels``,
            ``patch_size``, ``kernel_size``, ``stem``, ``norm``, ``hidden_act``, ``use_grn``,
            ``drop_path_rate``, ``layer_scale_init_value``, ``norm_eps``, ``layer_norm_eps``,
            ``with_cp``, ``adapt_stem``, ``output_stride``, ``fused``, ``prefer``, ``init_cfg``.

    Attributes:
        hidden_size: Number of channels of the pooled features, C.

    Raises:
        ValueError: If an argument has a wrong value; the message says which values are allowed.
        TypeError: If an argument has the wrong type.
    """

    def __init__(self, arch: str | Mapping = 'tiny', **base_args) -> None:
        super().__init__(arch, num_stages=None, **base_args)
        self.hidden_size = self.arch.hidden_sizes[-1]
        self.layernorm = make_norm(
            self.arch.variant.norm, self.hidden_size, eps=self.arch.final_norm_eps
        )

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False
    ) -> ConvNextModelOutput:
        """Computes the output of the last stage and the pooled features.

        Args:
            pixel_values: Normalised images of shape ``(N, num_channels, H, W)`` with H and W of at
                least ``stride``.
            output_hidden_states: Whether to also return the hidden states. Default: False.

        Raises:
            ValueError, TypeError: As :meth:`ConvNextBase.extract_hidden_states`.
        """
        hidden_states = self.extract_hidden_states(pixel_values)
        return ConvNextModelOutput(
            last_hidden_state=hidden_states[-1],
            pooler_output=self.layernorm(hidden_states[-1].mean(dim=(-2, -1))),
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def checkpoint_target(self) -> Target:
        """Describes the model for the loading of checkpoints."""
        target = super().checkpoint_target()
        settings = target.settings | dict(layer_norm_eps=self.arch.final_norm_eps)
        return replace(target, settings=settings)
