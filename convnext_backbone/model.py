"""The pooled model: one vector an image, as image classifiers want it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from .arch import resolve_arch
from .checkpoint import Architecture, LoadsAnyCheckpoint, Target
from .encoder import ConvNextEncoder
from .layers import ConvNextEmbeddings, ConvNextLayerNorm
from .trunk import check_images, init_weights


@dataclass
class ConvNextModelOutput:
    """What :class:`ConvNextModel` returns, under the seed's names.

    Attributes:
        last_hidden_state: The last stage's output, ``(N, C, H, W)``.
        pooler_output: The same averaged over H and W, then normalised, ``(N, C)``.
        hidden_states: The stem's and every stage's output, or None when they were not asked for.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@MODELS.register_module()
class ConvNextModel(LoadsAnyCheckpoint, BaseModule):
    """ConvNeXt or ConvNeXt V2 up to the pooled features.

    State-dict names are those of Hugging Face's ``ConvNextModel`` and ``ConvNextV2Model``, but
    tensors are loaded by any naming of :data:`convnext_backbone.checkpoint.formats.FORMATS` that
    has a final norm. They are loaded as a whole or not at all.

    Args:
        arch: As of :class:`convnext_backbone.ConvNextBackbone`. Default: ``'tiny'``.
        num_channels: Channels of the images. Default: 3.
        patch_size: Stride of the stem in pixels. Default: 4.
        hidden_act: One of ``gelu`` (default), ``gelu_new``, ``relu``, ``silu``.
        use_grn: Whether the blocks are those of ConvNeXt V2. Default: None, as ``arch`` says.
        drop_path_rate: Stochastic depth of the last block; rates rise linearly from 0 over all
            blocks. Default: 0.
        layer_scale_init_value: Start of the layer scale; 0 or None builds none, nor do V2 blocks.
            Default: 1e-6.
        layer_norm_eps: Added to the variance by the norm of the pooled features. Default: 1e-12.
        with_cp: Whether each block recomputes its activations in the backward pass instead of
            keeping them. Default: False.
        adapt_stem: Whether a checkpoint of RGB images may be loaded with other ``num_channels``, as
            in :class:`convnext_backbone.ConvNextBackbone`. Default: False.
        init_cfg: As everywhere in mmengine. Default: None, which leaves the paper's initialisation.

    Attributes:
        hidden_size: Channels of the pooled features, C.

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
        layer_norm_eps: float = 1e-12,
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
        self.hidden_size = hidden_sizes[-1]
        self.stride = patch_size * 2 ** (len(depths) - 1)
        self.embeddings = ConvNextEmbeddings(num_channels, hidden_sizes[0], patch_size)
        self.encoder = ConvNextEncoder(
            depths,
            hidden_sizes,
            drop_path_rate=drop_path_rate,
            hidden_act=hidden_act,
            use_grn=architecture.use_grn,
            layer_scale_init_value=layer_scale_init_value,
            with_cp=with_cp,
        )
        self.layernorm = ConvNextLayerNorm(self.hidden_size, eps=layer_norm_eps)
        self.apply(init_weights)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False
    ) -> ConvNextModelOutput:
        """Computes the last stage's output and the pooled features.

        Args:
            pixel_values: Normalised images of shape ``(N, num_channels, H, W)``, H and W not below
                the last stage's stride.
            output_hidden_states: Whether the output also holds the hidden states. Default: False.

        Raises:
            ValueError: If the images have another rank, number of channels or a smaller size than
                allowed.
            TypeError: If the images are no tensor of real floating-point numbers.
        """
        check_images(pixel_values, self.stride, f'stage{len(self.encoder.stages)}')
        hidden_states = self.encoder(self.embeddings(pixel_values), output_hidden_states=True)
        return ConvNextModelOutput(
            last_hidden_state=hidden_states[-1],
            pooler_output=self.layernorm(hidden_states[-1].mean(dim=(-2, -1))),
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def checkpoint_target(self) -> Target:
        """What the loading of checkpoints needs to know of the model."""
        return Target(
            name=type(self).__name__,
            architecture=self.architecture,
            tensors=self.state_dict(),
            left_out={'hidden_states_norms.': 'norms of maps', 'classifier.': 'head'},
            adapt_stem=self.adapt_stem,
        )
