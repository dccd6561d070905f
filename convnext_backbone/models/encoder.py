"""Stages of ConvNeXt layers, and the encoder: a chain of stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import ConvNextLayer
from .checks import check_integer, check_rate
from .norms import make_norm


class ConvNextStage(nn.Module):
    """A downsampling, if the width or the resolution changes, and layers of one width.

    The downsampling is a channels-first norm and a convolution whose kernel size is its stride.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels, C.
        depth: Number of layers. Default: 2.
        stride: Factor S that divides the resolution. Default: 2. With 1 and equal numbers of input
            and output channels, there is no downsampling.
        dilation: Dilation D of the depthwise convolutions. Default: 1. Above 1, the resolution
            stays: the 2x2 convolution of the downsampling has stride 1 and dilation D / 2.
        drop_path_rates: One rate per layer. Default: None, all 0.
        norm_eps: Added to the variance by the norms. Default: 1e-6.
        norm: As in :class:`ConvNextBase`, for the layers and the downsampling.
            Default: ``'layernorm'``.
        fused: As in :class:`ConvNextLayer`, for the layers and the norm. Default: None.
        **layer_args: Passed to every :class:`ConvNextLayer`.

    Shape:
        Input: ``(N, in_channels, H, W)``; output: ``(N, C, H // S, W // S)``.

    Raises:
        ValueError: If the number of rates is not the number of layers, or a number is too small.
        TypeError: If a number is not an integer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int = 2,
        stride: int = 2,
        dilation: int = 1,
        drop_path_rates: Sequence[float] | None = None,
        norm_eps: float = 1e-6,
        norm: str = 'layernorm',
        fused: bool | None = None,
        **layer_args,
    ) -> None:
        super().__init__()
        sizes = dict(in_channels=in_channels, out_channels=out_channels, depth=depth, stride=stride)
        for name, value in sizes.items():
            check_integer(name, value, at_least=1)
        rates = [0.0] * depth if drop_path_rates is None else drop_path_rates
        if len(rates) != depth:
            raise ValueError(
                f'{len(rates)} drop_path_rates were given for {depth} layers: pass one per layer'
            )
        downsampling: list[nn.Module] = []
        if in_channels != out_channels or stride > 1 or dilation > 1:
            if dilation > 1:
                conv = nn.Conv2d(
                    in_channels, out_channels, kernel_size=2, padding='same', dilation=dilation // 2
                )
            else:
                conv = nn.Conv2d(in_channels, out_channels, kernel_size=stride, stride=stride)
            downsampling = [
                make_norm(
                    norm, in_channels, eps=norm_eps, data_format='channels_first', fused=fused
                ),
                conv,
            ]
        self.downsampling_layer = nn.Sequential(*downsampling)
        self.layers = nn.Sequential(
            *(
                ConvNextLayer(
                    out_channels,
                    drop_path=rate,
                    dilation=dilation,
                    norm_eps=norm_eps,
                    norm=norm,
                    fused=fused,
                    **layer_args,
                )
                for rate in rates
            )
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layers(self.downsampling_layer(hidden_states))


class ConvNextEncoder(nn.Module):
    """The stages after the stem. Each stage except the first halves the resolution.

    Drop-path rates increase linearly from 0 at the first block to ``drop_path_rate`` at the last
    block of ``depths``, even if that block is not built. So ``num_stages`` does not change the
    rates.

    Args:
        depths: Number of layers of each stage.
        hidden_sizes: Number of channels of each stage.
        drop_path_rate: Rate of the last block. Default: 0.
        max_stride: Largest stride of a stage relative to the stem, a power of 2. Later stages are
            dilated instead. Default: None, no limit.
        num_stages: Number of stages to build, from the first one. Default: None, all.
        kernel_sizes: Side of the kernels of the depthwise convolutions of each stage. Default:
            None, 7 in all.
        **layer_args: Passed to every :class:`ConvNextStage`, such as ``fused`` or ``norm_eps``.

    Shape:
        Input: ``(N, hidden_sizes[0], H, W)``; output of stage k, counted from 0:
        ``(N, hidden_sizes[k], H // s, W // s)`` with ``s = min(2**k, max_stride)``.

    Attributes:
        strides: Stride of each built stage relative to the stem.

    Raises:
        ValueError: If ``drop_path_rate`` is outside [0, 1), if ``max_stride`` is not the stride of
            a stage, or if there is not one depth per hidden size.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        depths: Sequence[int],
        hidden_sizes: Sequence[int],
        drop_path_rate: float = 0.0,
        max_stride: int | None = None,
        num_stages: int | None = None,
        kernel_sizes: Sequence[int] | None = None,
        **layer_args,
    ) -> None:
        super().__init__()
        check_rate('drop_path_rate', drop_path_rate)
        if len(depths) != len(hidden_sizes):
            raise ValueError(
                f'depths and hidden_sizes must have one number per stage, got {depths} and '
                f'{hidden_sizes}'
            )
        allowed = [2**i for i in range(len(depths))]
        if max_stride is not None and (max_stride is True or max_stride not in allowed):
            raise ValueError(f'max_stride must be None or one of {allowed}, got {max_stride!r}')
        # On the CPU even under a device context: tensors on the meta device have no values.
        rates = torch.linspace(0, drop_path_rate, sum(depths), dtype=torch.float64, device='cpu')
        in_channels = [hidden_sizes[0], *hidden_sizes]
        kernel_sizes = kernel_sizes or [7] * len(depths)
        full = [2**i for i in range(len(depths))]
        strides = [min(stride, max_stride or stride) for stride in full][:num_stages]
        stages = [
            ConvNextStage(
                in_channels[i],
                hidden_sizes[i],
                depth=depths[i],
                stride=strides[i] // strides[i - 1] if i > 0 else 1,
                dilation=full[i] // strides[i],
                drop_path_rates=stage_rates.tolist(),
                kernel_size=kernel_sizes[i],
                **layer_args,
            )
            for i, stage_rates in enumerate(rates.split(list(depths))[:num_stages])
        ]
        self.stages = nn.ModuleList(stages)
        self.strides = strides

    def forward(
        self, hidden_states: Tensor, output_hidden_states: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs all stages.

        Args:
            hidden_states: The output of the stem.
            output_hidden_states: Whether to return all hidden states. Default: False.

        Returns:
            The output of the last stage, or a tuple of all hidden states, starting with the input.
        """
        all_hidden_states = [hidden_states]
        for stage in self.stages:
            all_hidden_states.append(stage(all_hidden_states[-1]))
        return tuple(all_hidden_states) if output_hidden_states else all_hidden_states[-1]
