"""The backbone with the interface of Hugging Face's backbones, for DETR, MaskFormer and others."""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_outputs import BackboneOutput

from ..models import ConvNextBackbone


class ConvNextTransformersBackbone(ConvNextBackbone):
    """A :class:`ConvNextBackbone` that returns a ``BackboneOutput`` of transformers.

    ``channels``, ``out_features`` and ``num_features`` have the names that transformers uses, too.
    The arguments are those of :class:`ConvNextBackbone`.

    Example:
        >>> from transformers import MaskFormerForInstanceSegmentation
        >>> model = MaskFormerForInstanceSegmentation(config)  # with a ConvNextConfig of this arch
        >>> model.model.pixel_level_module.encoder = ConvNextTransformersBackbone(
        ...     'tiny', out_features=('stage1', 'stage2', 'stage3', 'stage4')
        ... )
    """

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        output_hidden_states: bool = False,
        **_unused: object,
    ) -> BackboneOutput:
        """Computes the feature maps of ``out_features``.

        Args:
            pixel_values: As in :meth:`ConvNextBackbone.forward`.
            output_hidden_states: Whether to also return the outputs of the stem and the stages.
                Default: False.
            **_unused: ``output_attentions`` and ``return_dict``, which callers in transformers
                pass: there is no attention, and the output is always a ``BackboneOutput``.
        """
        output = super().forward(pixel_values, output_hidden_states, return_dict=True)
        return BackboneOutput(output.feature_maps, output.hidden_states)  # type: ignore
