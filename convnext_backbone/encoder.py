"""Stages of ConvNeXt layers and the encoder that chains them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import ConvNextLayer, ConvNextLayerNorm


class ConvNextStage(nn.Module):
    """Layers of one width, behind a downsampling where width or resolution change.

    The downsampling is a channels-first norm and a convolution whose kernel equals its stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, C.
        depth: Number of layers. Default: 2.
        stride: Factor S by which the resolution falls. Default: 2. With 1 and as many channels out
            as in, nothing is downsampled.
        drop_path_rates: One rate a layer. Default: all 0.
        **layer_args: Passed on to every :class:`ConvNextLayer`.

    Shape:
        ``(N, in_channels, H, W)`` in, ``(N, C, H // S, W // S)`` out.

    Raises:
        ValueError: If there are more or fewer rates than layers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int = 2,
        stride: int = 2,
        drop_path_rates: Sequence[float] | None = None,
        **layer_args,
    ) -> None:
        super().__init__()
        rates = [0.0] * depth if drop_path_rates is None else drop_path_rates
        if len(rates) != depth:
            raise ValueError(f'{len(rates)} drop_path_rates were given for {depth} layers')
        downsampling = []
        if in_channels != out_channels or stride > 1:
            downsampling = [
                ConvNextLayerNorm(in_channels, data_format='channels_first'),
                nn.Conv2d(in_channels, out_channels, kernel_size=stride, stride=stride),
            ]
        self.downsampling_layer = nn.Sequential(*downsampling)
        self.layers = nn.Sequential(
            *(ConvNextLayer(out_channels, drop_path=rate, **layer_args) for rate in rates)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layers(self.downsampling_layer(hidden_states))


class ConvNextEncoder(nn.Module):
    """The stages behind the stem; each but the first halves the resolution.

    Drop-path rates rise linearly from 0 at the first block to ``drop_path_rate`` at the last one of
    all of ``depths``, built or not: a backbone cut short drops as the whole one does.

    Args:
        depths: Layers of each stage.
        hidden_sizes: Channels of each stage.
        drop_path_rate: Rate of the last block. Default: 0.
        num_stages: Number of stages to build, from the first on. Default: all.
        **layer_args: Passed on to every :class:`ConvNextLayer`.

    Shape:
        ``(N, hidden_sizes[0], H, W)`` in, ``(N, hidden_sizes[k], H // 2**k, W // 2**k)`` out of
        stage k, counted from 0.
    """

    def __init__(
        self,
        depths: Sequence[int],
        hidden_sizes: Sequence[int],
        drop_path_rate: float = 0.0,
        num_stages: int | None = None,
        **layer_args,
    ) -> None:
        super().__init__()
        # On the CPU even under a device context: on the meta device rates have no values.
        rates = torch.linspace(0, drop_path_rate, sum(depths), dtype=torch.float64, device='cpu')
        in_channels = [hidden_sizes[0], *hidden_sizes]
        stages = [
            ConvNextStage(
                in_channels[i],
                hidden_sizes[i],
                depth=depths[i],
                stride=2 if i > 0 else 1,
                drop_path_rates=stage_rates.tolist(),
                **layer_args,
            )
            for i, stage_rates in enumerate(rates.split(list(depths))[:num_stages])
        ]
        self.stages = nn.ModuleList(stages)

    def forward(
        self, hidden_states: Tensor, output_hidden_states: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs all stages.

        Args:
            hidden_states: The stem's output.
            output_hidden_states: Whether to return every hidden state. Default: False.

        Returns:
            The last stage's output, or a tuple of all hidden states, the stem's output first.
        """
        all_hidden_states = [hidden_states]
        for stage in self.stages:
            all_hidden_states.append(stage(all_hidden_states[-1]))
        return tuple(all_hidden_states) if output_hidden_states else all_hidden_states[-1]
