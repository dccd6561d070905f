"""The block of ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops import (
    PREFERENCES,
    BlockParameters,
    BlockSettings,
    compiled_block,
    fused_block,
    is_transformed,
    kernels_title,
    modules_are_better,
)
from .activations import make_activation
from .checks import check_finite, check_flag, check_integer, check_kernel_size
from .drop_path import ConvNextDropPath
from .fusion import (
    fused_replaces,
    is_exported,
    log_once,
    obstacle_in_functions,
    obstacle_in_modules,
    obstacle_in_switch,
    obstacle_in_tensors,
    product_dtype,
)
from .norms import ConvNextGRN, ConvNextLayerNorm, make_norm

# The matrix products of a fused block have one of these dtypes.
FUSED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ConvNextLayer(nn.Module):
    """One block: depthwise convolution, norm, bottleneck, layer scale, drop path, residual.

    With ``use_grn``, a global response normalisation follows the activation (ConvNeXt V2). The
    block runs as one fused function if that gives the same result; otherwise its modules run. The
    choice is logged once per process, with the reason. In float16 the gradients of the fused
    function neither vanish under a small layer scale nor overflow under a large loss scale, as
    those of the modules do.

    Args:
        dim: Number of channels, C.
        drop_path: Probability of dropping the residual branch of a sample. Default: 0.
        hidden_act: One of ``gelu`` (default), ``gelu_new``, ``relu``, ``silu``.
        use_grn: Whether the bottleneck contains a :class:`ConvNextGRN`. Default: False.
        layer_scale_init_value: Initial value of the learned per-channel scale of the branch; with 0
            or None there is no such parameter. Default: 1e-6.
        with_cp: Whether the backward pass recomputes activations instead of keeping them (gradient
            checkpointing). Default: False.
        dilation: Dilation of the depthwise convolution. Default: 1. Fused functions do not support
            another one, so the modules run.
        kernel_size: Side of the kernel of the depthwise convolution, an odd number. Default: 7.
            With another one, the modules run.
        norm_eps: Added to the variance by the norm. Default: 1e-6.
        norm: As in :class:`ConvNextBase`. Default: ``'layernorm'``. With another one, the modules
            run.
        fused: True runs the block fused if possible, False always runs its modules. Default:
            None, which follows the environment variable ``CONVNEXT_FUSED`` (``1`` or ``0``; on if
            it is not set). On a GPU, None also runs the modules where they are faster.
        prefer: ``'memory'`` runs a block that trains on a GPU fused, even if the modules are
            faster. Default: ``'speed'``, whichever is faster.

    Shape:
        Input and output: ``(N, C, H, W)``. The fused block returns channels_last memory.

    Raises:
        ValueError: If ``hidden_act``, ``norm`` or ``prefer`` is unknown, ``drop_path`` is outside
            [0, 1) or another number has a wrong value.
        TypeError: If an argument has the wrong type.
    """

    # The types that the inner modules must have for the block to run fused.
    FUSED_TYPES: ClassVar = {
        'dwconv': (nn.Conv2d,),
        'layernorm': (ConvNextLayerNorm,),
        'pwconv1': (nn.Linear,),
        'act': (nn.GELU,),
        'grn': (nn.Identity, ConvNextGRN),
        'pwconv2': (nn.Linear,),
        'drop_path': (ConvNextDropPath,),
    }

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        hidden_act: str = 'gelu',
        use_grn: bool = False,
        layer_scale_init_value: float | None = 1e-6,
        with_cp: bool = False,
        dilation: int = 1,
        kernel_size: int = 7,
        norm_eps: float = 1e-6,
        norm: str = 'layernorm',
        fused: bool | None = None,
        prefer: str = 'speed',
    ) -> None:
        super().__init__()
        if prefer not in PREFERENCES:
            raise ValueError(f'prefer must be one of {PREFERENCES}, got {prefer!r}')
        check_integer('dim', dim, at_least=1)
        check_integer('dilation', dilation, at_least=1)
        check_kernel_size(kernel_size)
        check_flag('use_grn', use_grn)
        check_finite('layer_scale_init_value', layer_scale_init_value)
        check_flag('with_cp', with_cp)
        check_flag('fused', fused, optional=True)
        self.dwconv = nn.Conv2d(
            dim,
            dim,
            kernel_size=kernel_size,
            padding=kernel_size // 2 * dilation,
            dilation=dilation,
            groups=dim,
        )
        self.layernorm = make_norm(norm, dim, eps=norm_eps)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = make_activation(hidden_act)
        self.grn = ConvNextGRN(4 * dim) if use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        if layer_scale_init_value:
            self.layer_scale_parameter = nn.Parameter(
                torch.full((dim,), float(layer_scale_init_value))
            )
        else:
            self.register_parameter('layer_scale_parameter', None)
        self.drop_path = ConvNextDropPath(drop_path)
        self.with_cp = with_cp
        self.fused = fused
        self.prefer = prefer

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not is_exported():
            obstacle = obstacle_in_switch(self.fused) or self._obstacle_in_modules()
            if obstacle is None:
                parameters = self._fused_parameters()
                obstacle = self._obstacle_in_tensors(hidden_states, parameters)
                if obstacle is None:
                    return self._run_fused(hidden_states, parameters)
            log_once(f'ConvNeXt blocks run module by module: {obstacle}')
        # The transforms of torch.func do not support gradient checkpointing.
        if self.with_cp and self._needs_gradients(hidden_states) and not is_transformed():
            return checkpoint(self.run_modules, hidden_states, use_reentrant=False)
        return self.run_modules(hidden_states)

    def _needs_gradients(self, hidden_states: Tensor) -> bool:
        """Whether there will be a backward pass; checkpointing keeps the input in any case."""
        return torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (hidden_states, *self.parameters())
        )

    def run_modules(self, hidden_states: Tensor) -> Tensor:
        """Runs the block module by module. The fused function needs less memory."""
        branch = self.dwconv(hidden_states).permute(0, 2, 3, 1)
        branch = self.layernorm(branch)
        branch = self.grn(self.act(self.pwconv1(branch)))
        branch = self.pwconv2(branch)
        if self.layer_scale_parameter is not None:
            branch = branch * self.layer_scale_parameter
        return hidden_states + self.drop_path(branch.permute(0, 3, 1, 2))

    def obstacle(self) -> str | None:
        """Returns why only the modules may compute the block, or None.

        Settings and inputs, which can change from call to call, are not considered.
        """
        obstacle = self._obstacle_in_modules()
        return obstacle or self._fused_parameters().misfit(self.dwconv.out_channels)

    def _run_fused(self, hidden_states: Tensor, parameters: BlockParameters) -> Tensor:
        features = hidden_states.permute(0, 2, 3, 1).contiguous()
        settings = self._fused_settings(hidden_states)
        log_once(f'ConvNeXt blocks run fused, {kernels_title(features, settings.dtype)}')
        keep = self.drop_path.factors(hidden_states)
        run = compiled_block if torch.compiler.is_compiling() else fused_block
        output = run(features, keep, settings, parameters)
        return output.permute(0, 3, 1, 2)

    def _fused_settings(self, hidden_states: Tensor) -> BlockSettings:
        dtype = product_dtype(hidden_states)
        output_dtype = torch.promote_types(hidden_states.dtype, dtype)
        if self.layer_scale_parameter is not None:
            output_dtype = torch.promote_types(output_dtype, self.layer_scale_parameter.dtype)
        return BlockSettings(
            dtype=dtype,
            output_dtype=output_dtype,
            norm_eps=self.layernorm.eps,
            grn_eps=getattr(self.grn, 'eps', 0.0),
            lean=self.with_cp,
        )

    def _fused_parameters(self) -> BlockParameters:
        return BlockParameters(
            depthwise_weight=self.dwconv.weight,
            depthwise_bias=self.dwconv.bias,  # type: ignore[arg-type]  # misfit() finds None
            norm_weight=self.layernorm.weight,
            norm_bias=self.layernorm.bias,
            weight1=self.pwconv1.weight,
            bias1=self.pwconv1.bias,
            weight2=self.pwconv2.weight,
            bias2=self.pwconv2.bias,
            layer_scale=self.layer_scale_parameter,
            grn_weight=getattr(self.grn, 'weight', None),
            grn_bias=getattr(self.grn, 'bias', None),
        )

    def _obstacle_in_modules(self) -> str | None:
        if (
            type(self).run_modules is not ConvNextLayer.run_modules
            or 'run_modules' in self.__dict__
        ):
            return f'{type(self).__name__} overrides run_modules'
        obstacle = obstacle_in_functions() or obstacle_in_modules(self, self.FUSED_TYPES)
        if obstacle is not None:
            return obstacle
        if self.act.approximate != 'none':
            return f'their act is GELU with approximate={self.act.approximate}'
        conv = self.dwconv
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode
        if geometry != ((7, 7), (1, 1), (3, 3), (1, 1), 'zeros') or conv.groups != conv.in_channels:
            reason = ', whose dilation no fused function has' if conv.dilation != (1, 1) else ''
            return f'their dwconv is Conv2d of geometry {geometry}, groups={conv.groups}{reason}'
        norm = self.layernorm
        if (norm.data_format, norm.normalized_shape) != ('channels_last', (conv.out_channels,)):
            return f'their layernorm is {norm.data_format} of {norm.normalized_shape} channels'
        return None

    def _obstacle_in_tensors(
        self, hidden_states: Tensor, parameters: BlockParameters
    ) -> str | None:
        tensors = [hidden_states, *(t for t in parameters if t is not None)]
        return (
            parameters.misfit(hidden_states.shape[1])
            or obstacle_in_tensors(tensors)
            or self._obstacle_in_dtypes(tensors)
            or self._obstacle_in_times(tensors, len(parameters.norm_weight))
        )

    def _obstacle_in_times(self, tensors: list[Tensor], channels: int) -> str | None:
        if self.fused:
            return None
        device, dtype = tensors[0].device, product_dtype(tensors[0])
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return modules_are_better(device, channels, dtype, trains, self.prefer)

    @staticmethod
    def _obstacle_in_dtypes(tensors: list[Tensor]) -> str | None:
        dtype, dtypes = product_dtype(tensors[0]), {t.dtype for t in tensors}
        autocast = torch.is_autocast_enabled(tensors[0].device.type)
        allowed = (torch.float32, dtype) if autocast else (dtype,)
        if dtype in FUSED_DTYPES and all(d in allowed for d in dtypes):
            return None
        return (
            f'their tensors are {", ".join(sorted(map(str, dtypes)))} and they compute in {dtype}, '
            'but all must be float64, float32, bfloat16 or float16, or under autocast float32 and '
            'its dtype'
        )


fused_replaces(ConvNextDropPath, 'forward')
fused_replaces(ConvNextLayer, 'run_modules')
