"""Learning rates that decay from the heads to the stem, by the official rule of ConvNeXt."""

from __future__ import annotations

import re

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from .backbone import ConvNextBackbone

DECAY_TYPES = ('layer_wise', 'stage_wise')
_STAGE = re.compile(r'encoder\.stages\.(\d+)\.(?:downsampling_layer|layers\.(\d+))\.')
# What FSDP, torch.compile and activation checkpointing put in front of a wrapped module's names.
_WRAPPERS = re.compile(r'(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.')


def layer_id(name: str, decay_type: str, num_layers: int) -> int:
    """The official layer of a parameter, from 0 for the stem to ``num_layers + 1`` for the rest.

    Layer-wise, three blocks of the third stage share a layer; stage-wise, every stage is one and
    all downsamplings go with the stem.

    Args:
        name: The parameter's name within its :class:`ConvNextBackbone`.
        decay_type: ``'layer_wise'`` or ``'stage_wise'``.
        num_layers: L, the layer of the fourth stage when layer-wise.

    Raises:
        ValueError: If no such parameter is known.
    """
    name = _WRAPPERS.sub('', name)
    if name.startswith('embeddings.'):
        return 0
    if name.startswith('hidden_states_norms.'):
        return num_layers + 1
    match = _STAGE.match(name)
    if match is None:
        raise ValueError(
            f'{name!r} is no parameter of a ConvNextBackbone; under FSDP, parameters keep their '
            'names with use_orig_params=True'
        )
    stage, block = int(match[1]), match[2]
    if decay_type == 'stage_wise':
        return 0 if block is None else stage + 1
    if stage == 2 and block is not None:
        return 3 + int(block) // 3
    return (1, 2, 3, num_layers)[stage]


def resolve_num_layers(backbone: ConvNextBackbone, decay_type: str, num_layers: int | None) -> int:
    """Takes the number of layers L from the architecture, or checks the one given.

    Raises:
        ValueError: If the official rule says nothing about the architecture, or if its third stage
            is too deep for ``num_layers``.
    """
    depths = backbone.architecture.arch.depths
    third = depths[2] if len(depths) > 2 else 0
    if num_layers is None:
        num_layers = 6 if third <= 9 else 12
    if decay_type == 'stage_wise' and len(depths) <= num_layers:
        return num_layers
    deepest = 3 * (num_layers - 3)
    if len(depths) > 4 or third > deepest:
        raise ValueError(
            f'{decay_type} decay with num_layers={num_layers} is defined for at most four stages '
            f'with at most {deepest} blocks in the third, got depths {depths}: '
            "leave num_layers out, or set decay_type='stage_wise'"
        )
    return num_layers


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNextLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scales the learning rate of a layer by ``decay_rate ** (num_layers + 1 - layer_id)``.

    The layers are those of :func:`layer_id` (ConvNeXt, appendix A; official repository). Norms of
    maps, necks and heads keep the whole rate. Biases, 1-D parameters and GRN get no weight decay,
    unless a custom key sets their ``decay_mult``. The ``lr_mult`` of a custom key multiplies the
    layer's scale; all other options of mmengine's default constructor work as there. Frozen
    parameters are left out.

    Args:
        optim_wrapper_cfg: The optimiser wrapper, whose optimiser has an ``lr``.
        paramwise_cfg: ``decay_rate``, in (0, 1]; ``decay_type``, ``'layer_wise'`` (default) or
            ``'stage_wise'``; ``num_layers``, 6, 12 or None (default), which is 6 for a third
            stage of at most 9 blocks, else 12; and mmengine's own options.

    Raises:
        ValueError: If an option has a value that is not allowed, or if the model holds no
            :class:`ConvNextBackbone`.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     constructor='ConvNextLayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ... )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.decay_rate = self.paramwise_cfg.get('decay_rate')
        self.decay_type = self.paramwise_cfg.get('decay_type', 'layer_wise')
        self.num_layers = self.paramwise_cfg.get('num_layers')
        if not isinstance(self.decay_rate, (int, float)) or not 0 < self.decay_rate <= 1:
            raise ValueError(
                'paramwise_cfg needs a decay_rate in (0, 1], such as decay_rate=0.95, '
                f'got {self.decay_rate!r}'
            )
        if self.decay_type not in DECAY_TYPES:
            raise ValueError(f'decay_type must be one of {DECAY_TYPES}, got {self.decay_type!r}')
        if self.num_layers not in (6, 12, None):
            raise ValueError(f'num_layers must be 6, 12 or None, got {self.num_layers!r}')
        if self.base_lr is None:
            raise ValueError('layers scale the lr of the optimizer: set optimizer=dict(lr=...)')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the optimiser wrapper of ``model``, which may be wrapped, and logs its groups."""
        # FSDP holds every parameter as a flat shard.
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            names = model.named_parameters()
            self._shapes = {_WRAPPERS.sub('', name): p.shape for name, p in names}
        self._names = {p: _WRAPPERS.sub('', name) for name, p in model.named_parameters()}
        return super().__call__(model)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Adds the groups of a model, one for each layer and each set of options."""
        if prefix:
            return super().add_params(params, module, prefix, is_dcn_module)
        layers, num_layers = self._find_layers(module)
        single: list[dict] = []
        super().add_params(single, module, prefix, is_dcn_module)
        merged: dict[str, dict] = {}
        for group in single:
            (parameter,) = group.pop('params')
            layer = layers.get(parameter, num_layers + 1)
            scale = self.decay_rate ** (num_layers + 1 - layer)
            group |= dict(layer_id=layer, lr_scale=scale, lr=group.get('lr', self.base_lr) * scale)
            if self._is_exempt(self._names[parameter]) and 'decay_mult' not in group:
                group['weight_decay'] = 0.0
            group.setdefault('weight_decay', self.base_wd or 0.0)
            options = repr(sorted(group.items()))
            merged.setdefault(options, dict(params=[], **group))['params'].append(parameter)
        params += sorted(merged.values(), key=lambda g: (g['layer_id'], -g['weight_decay']))
        self._log(params, num_layers)

    def _find_layers(self, model: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
        """The layer of every parameter of the model's backbones, and L."""
        backbones = [m for m in model.modules() if isinstance(m, ConvNextBackbone)]
        if not backbones:
            raise ValueError(
                f'{type(model).__name__} holds no ConvNextBackbone, whose layers '
                f'{type(self).__name__} tells apart: set backbone=dict(type="ConvNextBackbone", '
                '...), or leave optim_wrapper.constructor out'
            )
        lengths = {resolve_num_layers(b, self.decay_type, self.num_layers) for b in backbones}
        if len(lengths) > 1:
            raise ValueError(
                f'the ConvNextBackbones of {type(model).__name__} have {sorted(lengths)} layers: '
                'set num_layers=12 for all of them'
            )
        (num_layers,) = lengths
        layers = {
            parameter: layer_id(name, self.decay_type, num_layers)
            for backbone in backbones
            for name, parameter in backbone.named_parameters()
        }
        return layers, num_layers

    def _is_exempt(self, name: str) -> bool:
        """Whether the papers' recipes give the parameter no weight decay."""
        return len(self._shapes[name]) <= 1 or name.endswith(('.bias', '.grn.weight'))

    def _log(self, groups: list[dict], num_layers: int) -> None:
        """Logs one line a group."""
        lines = ['group       lr scale          lr      wd  tensors   parameters']
        for group in groups:
            layer = group['layer_id']
            title = 'the rest' if layer > num_layers else f'layer {layer}'
            count = sum(self._shapes[self._names[p]].numel() for p in group['params'])
            lines.append(
                f'{title:<10}{group["lr_scale"]:>10.4f}{group["lr"]:>12.3e}'
                f'{group["weight_decay"]:>8.4g}{len(group["params"]):>9}{count:>13,}'
            )
        print_log(
            f'{self.decay_type} decay of the learning rate by {self.decay_rate}, '
            f'{num_layers} layers:\n' + '\n'.join(lines),
            logger='current',
        )
