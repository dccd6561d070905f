"""Compares layer-wise and stage-wise learning rates with the official rule, for every name."""

import logging
import re

import pytest
import torch
from helpers import REPO, SMALL, randomize, small_backbone
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification, ConvNextModel

LR, DECAY = 1e-3, 0.05

# The rule: the layer of the stem, then for each stage the layer of its downsampling and the layers
# of its blocks in order.
LAYERS = {
    ('tiny', 'layer_wise'): (
        0,
        [(None, [1] * 3), (2, [2] * 3), (3, [3] * 3 + [4] * 3 + [5] * 3), (6, [6] * 3)],
    ),
    ('tiny', 'stage_wise'): (0, [(None, [1] * 3), (0, [2] * 3), (0, [3] * 9), (0, [4] * 3)]),
    ('base', 'layer_wise'): (
        0,
        [
            (None, [1] * 3),
            (2, [2] * 3),
            (3, [layer for layer in range(3, 12) for _ in range(3)]),
            (12, [12] * 3),
        ],
    ),
    ('base', 'stage_wise'): (0, [(None, [1] * 3), (0, [2] * 3), (0, [3] * 27), (0, [4] * 3)]),
}
NUM_LAYERS = {'tiny': 6, 'base': 12}
BLOCK = [
    *('dwconv.weight', 'dwconv.bias', 'layernorm.weight', 'layernorm.bias'),
    *('pwconv1.weight', 'pwconv1.bias', 'pwconv2.weight', 'pwconv2.bias'),
    'layer_scale_parameter',
]


def rule(arch: str, decay_type: str) -> dict[str, int]:
    """The official layer of every parameter of a backbone with four maps, by its name."""
    stem, stages = LAYERS[arch, decay_type]
    layers = {}
    for module in ('patch_embeddings', 'layernorm'):
        for kind in ('weight', 'bias'):
            layers[f'embeddings.{module}.{kind}'] = stem
    for i, (downsampling, blocks) in enumerate(stages):
        if downsampling is not None:
            for name in ('0.weight', '0.bias', '1.weight', '1.bias'):
                layers[f'encoder.stages.{i}.downsampling_layer.{name}'] = downsampling
        for j, layer in enumerate(blocks):
            for name in BLOCK:
                layers[f'encoder.stages.{i}.layers.{j}.{name}'] = layer
        for kind in ('weight', 'bias'):
            layers[f'hidden_states_norms.stage{i + 1}.{kind}'] = NUM_LAYERS[arch] + 1
    return layers


class Detector(nn.Module):
    """A backbone with any attribute name, and a head."""

    def __init__(self, name: str = 'backbone', **backbone) -> None:
        super().__init__()
        self.add_module(name, ConvNextBackbone(**{'out_indices': (0, 1, 2, 3), **backbone}))
        self.head = nn.Conv2d(3, 4, 3)


def build(model: nn.Module, optimizer: str = 'AdamW', **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='ConvNextLayerDecayOptimWrapperConstructor',
            optimizer=dict(type=optimizer, lr=LR, weight_decay=DECAY),
            paramwise_cfg=dict(decay_rate=0.7, **paramwise),
        ),
    )


def groups_by_name(model: nn.Module, optim_wrapper) -> dict[str, dict]:
    groups = {p: group for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    return {name: groups[p] for name, p in model.named_parameters() if p in groups}


def test_constructor_is_in_the_root_registry():
    name = 'ConvNextLayerDecayOptimWrapperConstructor'
    assert OPTIM_WRAPPER_CONSTRUCTORS.scope == 'mmengine'
    assert OPTIM_WRAPPER_CONSTRUCTORS.get(name).__name__ == name


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
@pytest.mark.parametrize('arch', ['tiny', 'base'])
@pytest.mark.parametrize(('kind', 'key_prefix'), [('pooled', ''), ('classifier', 'convnext.')])
def test_models_and_classifiers_follow_the_same_rule(kind, key_prefix, arch, decay_type):
    with torch.device('meta'):
        if kind == 'pooled':
            model = ConvNextModel(arch)
        else:
            model = ConvNextForImageClassification(arch, num_labels=5)
    layers = {
        f'{key_prefix}{name}': layer
        for name, layer in rule(arch, decay_type).items()
        if not name.startswith('hidden_states_norms.')
    }
    last = NUM_LAYERS[arch] + 1
    layers |= {f'{key_prefix}layernorm.{leaf}': last for leaf in ('weight', 'bias')}
    if kind == 'classifier':
        layers |= {f'classifier.{leaf}': last for leaf in ('weight', 'bias')}
    groups = groups_by_name(model, build(model, decay_type=decay_type))
    found = {name: group['lr'] for name, group in groups.items()}
    expected = {name: LR * 0.7 ** (last - layer) for name, layer in layers.items()}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize('given', [True, False], ids=['num_layers given', 'num_layers found'])
@pytest.mark.parametrize(
    ('arch', 'decay_type'),
    LAYERS,
)
def test_every_parameter_has_the_official_layer_scale_and_decay(arch, decay_type, given):
    with torch.device('meta'):
        model = Detector(arch=arch)
    length = NUM_LAYERS[arch]
    wrapper = build(model, decay_type=decay_type, num_layers=length if given else None)
    groups = groups_by_name(model, wrapper)
    expected = {f'backbone.{name}': layer for name, layer in rule(arch, decay_type).items()}
    expected |= {'head.weight': length + 1, 'head.bias': length + 1}
    assert {name: group['layer_id'] for name, group in groups.items()} == expected
    for name, parameter in model.named_parameters():
        scale = 0.7 ** (length + 1 - expected[name])
        assert groups[name]['lr_scale'] == pytest.approx(scale, rel=1e-12), name
        assert groups[name]['lr'] == pytest.approx(LR * scale, rel=1e-12), name
        assert groups[name]['weight_decay'] == (DECAY if parameter.ndim > 1 else 0), name
    assert sum(len(group['params']) for group in wrapper.optimizer.param_groups) == len(expected)


def test_one_step_of_adamw_moves_each_group_by_its_own_rate():
    # AdamW's first step is lr * sign(gradient) for every gradient size.
    model = randomize(Detector(arch=SMALL))
    wrapper = build(model)
    for group in wrapper.optimizer.param_groups:
        group['weight_decay'] = 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    wrapper.step()
    for name, parameter in model.named_parameters():
        step = groups_by_name(model, wrapper)[name]['lr_scale'] * LR
        torch.testing.assert_close(
            before[name] - parameter, torch.full_like(parameter, step), rtol=1e-2, atol=1e-8
        )


def test_grn_gets_no_weight_decay():
    model = Detector(arch=SMALL, use_grn=True)
    groups = groups_by_name(model, build(model))
    decays = {name: group['weight_decay'] for name, group in groups.items() if '.grn.' in name}
    assert len(decays) == 14
    assert set(decays.values()) == {0}


def test_backbone_is_found_under_another_name_and_in_wrappers(tmp_path):
    plain, nested = Detector(arch=SMALL), nn.Module()
    expected = {n: g['lr'] for n, g in groups_by_name(plain, build(plain)).items()}
    nested.student = Detector('img_backbone', arch=SMALL)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path / "rendezvous"}', rank=0, world_size=1
    )
    try:
        wrapped = MMDistributedDataParallel(nested)
        groups = groups_by_name(wrapped, build(wrapped))
    finally:
        torch.distributed.destroy_process_group()
    prefix = 'module.student.'
    actual = {
        n.removeprefix(prefix).replace('img_backbone', 'backbone'): g['lr']
        for n, g in groups.items()
    }
    assert actual == expected


def test_example_of_the_readme_builds():
    blocks = re.findall(r'```python\n(.*?)```', (REPO / 'README.md').read_text(), re.DOTALL)
    (block,) = [block for block in blocks if 'decay_rate' in block]
    names = {}
    exec(block, names)
    assert names['optim_wrapper'].pop('_delete_') is True
    model = Detector(arch=SMALL)
    groups = groups_by_name(model, build_optim_wrapper(model, names['optim_wrapper']))
    assert groups['head.weight']['lr'] == 1e-4
    stem = groups['backbone.embeddings.patch_embeddings.weight']
    assert stem['lr'] == pytest.approx(1e-4 * 0.95**7)


def test_custom_keys_multiply_the_scale_and_may_set_the_decay():
    model = Detector(arch=SMALL)
    plain = groups_by_name(model, build(model))
    keys = {'stages.2': dict(lr_mult=0.5), 'head': dict(lr_mult=2.0, decay_mult=0.1)}
    custom = groups_by_name(model, build(model, custom_keys=keys))
    for name, group in custom.items():
        factor = 0.5 if 'stages.2' in name else 2.0 if 'head' in name else 1.0
        assert group['lr'] == pytest.approx(plain[name]['lr'] * factor, rel=1e-12), name
        decay = 0.1 * DECAY if 'head' in name else plain[name]['weight_decay']
        assert group['weight_decay'] == pytest.approx(decay), name


def test_other_options_of_mmengine_work():
    model = Detector(arch=SMALL)
    groups = groups_by_name(model, build(model, bias_lr_mult=2.0, dwconv_decay_mult=0.0))
    assert groups['head.bias']['lr'] == pytest.approx(2 * LR)
    assert groups['head.weight']['lr'] == pytest.approx(LR)
    assert groups['backbone.encoder.stages.0.layers.0.dwconv.weight']['weight_decay'] == 0


def test_frozen_parameters_are_left_out():
    model = Detector(arch=SMALL, frozen_stages=2)
    names = groups_by_name(model, build(model))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(names) == trainable
    assert not any('stages.1.' in name for name in names)


def test_depth_is_that_of_the_architecture_even_if_stages_are_left_out():
    model = Detector(arch='base', out_indices=(0, 1))
    groups = groups_by_name(model, build(model))
    layers = rule('base', 'layer_wise')
    for name, group in groups.items():
        if name.startswith('backbone.'):
            assert group['layer_id'] == layers[name.removeprefix('backbone.')], name


def test_log_has_one_line_per_group_that_counts_everything(caplog):
    model = Detector(arch=SMALL)
    logger = MMLogger.get_instance('lr_decay')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        wrapper = build(model)
    (table,) = [r.getMessage() for r in caplog.records if 'lr scale' in r.getMessage()]
    rows = [line.split() for line in table.splitlines()[2:]]
    assert len(rows) == len(wrapper.optimizer.param_groups)
    assert sum(int(row[-1].replace(',', '')) for row in rows) == sum(
        p.numel() for p in model.parameters()
    )
    assert sum(int(row[-2]) for row in rows) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ('model', 'paramwise', 'message'),
    [
        (lambda: nn.Linear(2, 2), {}, 'Linear holds no ConvNextBackbone'),
        (lambda: Detector(arch=SMALL), dict(decay_type='block_wise'), 'decay_type must be one of'),
        (lambda: Detector(arch=SMALL), dict(num_layers=9), 'num_layers must be 6, 12 or None'),
        (
            lambda: Detector(arch=dict(depths=[1, 1, 10, 1], hidden_sizes=[4, 4, 4, 4])),
            dict(num_layers=6),
            'at most 9 blocks in the third',
        ),
        (
            lambda: Detector(arch=dict(depths=[1] * 7, hidden_sizes=[4] * 7)),
            dict(decay_type='stage_wise'),
            'stage_wise decay with num_layers=6 is defined for at most 6 stages, got 7',
        ),
        (
            lambda: Detector(arch=dict(depths=[1, 1, 28, 1], hidden_sizes=[4, 4, 4, 4])),
            {},
            'at most 27 blocks in the third',
        ),
    ],
)
def test_what_the_rule_does_not_cover_is_refused(model, paramwise, message):
    with pytest.raises(ValueError, match=message):
        build(model(), **paramwise)


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9'])
def test_decay_rate_must_lie_in_range(rate):
    with pytest.raises(ValueError, match='decay_rate in'):
        OPTIM_WRAPPER_CONSTRUCTORS.get('ConvNextLayerDecayOptimWrapperConstructor')(
            dict(optimizer=dict(type='AdamW', lr=1e-3)), dict(decay_rate=rate)
        )


@pytest.mark.parametrize(
    'constructor', ['DefaultOptimWrapperConstructor', 'ConvNextLayerDecayOptimWrapperConstructor']
)
def test_frozen_parameters_are_one_line_of_the_log(constructor, capture_log):
    model = torch.nn.Sequential()
    model.add_module('backbone', small_backbone(frozen_stages=2))
    model.add_module('head', torch.nn.Linear(2, 2).requires_grad_(False))
    paramwise = dict(bias_decay_mult=0.0)
    if constructor != 'DefaultOptimWrapperConstructor':
        paramwise['decay_rate'] = 0.9
    build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            constructor=constructor,
            paramwise_cfg=paramwise,
        ),
    )
    frozen = [line for line in capture_log if 'frozen' in line or 'requires_grad' in line]
    # Stem: 4 tensors; 2 + 1 blocks of 9; one downsampling of 4.
    assert frozen == [
        'ConvNextBackbone (backbone): 35 parameters are frozen, the optimiser leaves them out',
        'head.weight is skipped since its requires_grad=False',
        'head.bias is skipped since its requires_grad=False',
    ]
