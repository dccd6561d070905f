"""Learning rates that decay from the head to the stem, by the official rule of ConvNeXt."""

from __future__ import annotations

import re

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..checkpoint.formats import NATIVE, NORMS_AND_HEAD
from ..checkpoint.larger_models import WRAPPERS
from ..checkpoint.names import parse_name
from ..models.base import ConvNextBase
from ..models.norms import ConvNextGRN

DECAY_TYPES = ('layer_wise', 'stage_wise')

# The keys of paramwise_cfg: those of this constructor, and those that mmengine reads.
KEYS = (
    *('decay_rate', 'decay_type', 'num_layers', 'custom_keys', 'bias_lr_mult', 'bias_decay_mult'),
    *('norm_decay_mult', 'dwconv_decay_mult', 'flat_decay_mult', 'dcn_offset_lr_mult'),
    'bypass_duplicate',
)
_WRAPPERS = re.compile(rf'(?:{"|".join(WRAPPERS)})\.')


def layer_id(name: str, decay_type: str, num_layers: int) -> int:
    """Returns the official layer of a parameter, from 0 for the stem to ``num_layers + 1``.

    With ``'layer_wise'``, three blocks of the third stage form a layer. With ``'stage_wise'``,
    every stage is a layer, and all downsampling layers belong to the layer of the stem. The norms
    of feature maps, the final norm and the head belong to the last layer.

    Args:
        name: The name of the parameter in its model, a :class:`ConvNextBase`.
        decay_type: ``'layer_wise'`` or ``'stage_wise'``.
        num_layers: L, which is also the layer of the fourth stage with ``'layer_wise'``.

    Raises:
        ValueError: If there is no such parameter.
    """
    parsed = parse_name(_WRAPPERS.sub('', name), NATIVE)
    if parsed is None:
        raise ValueError(
            f'{name!r} is not a parameter of a ConvNeXt: '
            'under FSDP, set use_orig_params=True to keep the names'
        )
    if parsed.part in NORMS_AND_HEAD:
        return num_layers + 1
    if parsed.stage is None:
        return 0
    if decay_type == 'stage_wise':
        return 0 if parsed.block is None else parsed.stage + 1
    if parsed.stage == 2 and parsed.block is not None:
        return 3 + parsed.block // 3
    return (1, 2, 3, num_layers)[parsed.stage]


def resolve_num_layers(model: ConvNextBase, decay_type: str, num_layers: int | None) -> int:
    """Returns the number of layers L of an architecture, or checks the given one.

    Args:
        model: The model.
        decay_type: ``'layer_wise'`` or ``'stage_wise'``.
        num_layers: 6, 12, or None to follow the depth of the third stage.

    Raises:
        ValueError: If the official rule does not cover the architecture, if it has more stages than
            ``num_layers``, or if the third stage is too deep for ``num_layers``.
    """
    depths = model.arch.depths
    third = depths[2] if len(depths) > 2 else 0
    if num_layers is None:
        num_layers = 6 if third <= 9 else 12
    if decay_type == 'stage_wise':
        if len(depths) > num_layers:
            raise ValueError(
                f'stage_wise decay with num_layers={num_layers} is defined for at most '
                f'{num_layers} stages, got {len(depths)} stages with the depths {depths}'
            )
        return num_layers
    deepest = 3 * (num_layers - 3)
    if len(depths) > 4 or third > deepest:
        raise ValueError(
            f'layer_wise decay with num_layers={num_layers} is defined for at most four stages '
            f'with at most {deepest} blocks in the third, got depths {depths}: '
            "leave num_layers out, or set decay_type='stage_wise'"
        )
    return num_layers


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNextLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scales the learning rate of each layer by ``decay_rate ** (num_layers + 1 - layer_id)``.

    It works for every model that contains a :class:`ConvNextBackbone` or a :class:`ConvNextModel`:
    detectors, segmentors, :class:`ConvNextForImageClassification`. The layers are those of
    :func:`layer_id` (ConvNeXt, appendix A; official repository). Norms of feature maps, the final
    norm, necks and heads keep the full rate. Biases, 1-D parameters and GRN get no weight decay,
    unless a custom key sets their ``decay_mult``. The ``lr_mult`` of a custom key multiplies the
    scale of the layer. All other options of mmengine's default constructor work as usual. Frozen
    parameters are left out.

    Args:
        optim_wrapper_cfg: Config of the optimiser wrapper. Its optimiser must have an ``lr``.
        paramwise_cfg: ``decay_rate``, in (0, 1]; ``decay_type``, ``'layer_wise'`` (default) or
            ``'stage_wise'``; ``num_layers``, 6, 12 or None (default: 6 if the third stage has at
            most 9 blocks, else 12); and mmengine's own options.

    Raises:
        ValueError: If an option is unknown or has a wrong value, if the optimiser has no ``lr``, or
            if the model contains no ConvNeXt of this package.

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
        if unknown := [key for key in self.paramwise_cfg if key not in KEYS]:
            raise ValueError(
                f'paramwise_cfg has unknown keys, {", ".join(map(repr, unknown))}: choose from '
                f'{", ".join(KEYS)}'
            )
        self.decay_rate = self.paramwise_cfg.get('decay_rate')
        self.decay_type = self.paramwise_cfg.get('decay_type', 'layer_wise')
        self.num_layers = self.paramwise_cfg.get('num_layers')
        # True would count as 1.
        rate = self.decay_rate
        is_number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        if not is_number or not 0 < rate <= 1:
            raise ValueError(
                f'paramwise_cfg needs a decay_rate in (0, 1], such as decay_rate=0.95, got {rate!r}'
            )
        if self.decay_type not in DECAY_TYPES:
            raise ValueError(f'decay_type must be one of {DECAY_TYPES}, got {self.decay_type!r}')
        if self.num_layers not in (6, 12, None):
            raise ValueError(f'num_layers must be 6, 12 or None, got {self.num_layers!r}')
        if self.base_lr is None:
            raise ValueError(
                'the optimizer has no lr, which the decay scales: set optimizer=dict(lr=...)'
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the optimiser wrapper and logs its parameter groups. ``model`` may be wrapped."""
        # FSDP stores parameters as flat shards. The shapes of the full parameters are needed here.
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            names = model.named_parameters()
            self._shapes = {_WRAPPERS.sub('', name): p.shape for name, p in names}
        self._names = {p: _WRAPPERS.sub('', name) for name, p in model.named_parameters()}
        self._grn_weights = {m.weight for m in model.modules() if isinstance(m, ConvNextGRN)}
        return super().__call__(model)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Adds the parameter groups of a model: one per layer and set of options."""
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
            if self._is_exempt(parameter) and 'decay_mult' not in group:
                group['weight_decay'] = 0.0
            group.setdefault('weight_decay', self.base_wd or 0.0)
            options = repr(sorted(group.items()))
            merged.setdefault(options, dict(params=[], **group))['params'].append(parameter)
        params += sorted(merged.values(), key=lambda g: (g['layer_id'], -g['weight_decay']))
        self._log(params, num_layers)

    def _find_layers(self, model: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
        """Returns the layer of every parameter of the ConvNeXts in a model, and L."""
        convnexts = [m for m in model.modules() if isinstance(m, ConvNextBase)]
        if not convnexts:
            raise ValueError(
                f'{type(model).__name__} holds no ConvNextBackbone or ConvNextModel, but '
                f'{type(self).__name__} needs its layers: set '
                'backbone=dict(type="ConvNextBackbone", ...), or remove optim_wrapper.constructor'
            )
        lengths = {resolve_num_layers(m, self.decay_type, self.num_layers) for m in convnexts}
        if len(lengths) > 1:
            raise ValueError(
                f'the ConvNeXts of {type(model).__name__} have different numbers of layers, '
                f'{sorted(lengths)}: set num_layers=12 for all of them'
            )
        (num_layers,) = lengths
        layers = {
            parameter: layer_id(name, self.decay_type, num_layers)
            for convnext in convnexts
            for name, parameter in convnext.named_parameters()
        }
        return layers, num_layers

    def _is_exempt(self, parameter: nn.Parameter) -> bool:
        """Whether the recipes of the papers use no weight decay for a parameter."""
        name = self._names[parameter]
        is_vector = len(self._shapes[name]) <= 1
        return is_vector or name.endswith('.bias') or parameter in self._grn_weights

    def _log(self, groups: list[dict], num_layers: int) -> None:
        """Logs one line per group."""
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
