"""The interface of the backbone: picks, attributes, layout, freezing, errors."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import ALL_FEATURES, SMALL, STAGES, randomize, small_backbone
from mmengine.registry import MODELS
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextBackboneOutput


def test_import_needs_torch_and_mmengine_only():
    code = (
        'import sys\n'
        "for name in ('mmcv', 'mmdet', 'mmseg', 'transformers', 'safetensors', 'torchvision'):\n"
        '    sys.modules[name] = None\n'
        'import convnext_backbone\n'
    )
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_registered_in_mmengines_root():
    model = MODELS.build(dict(type='ConvNextBackbone', arch=SMALL, out_indices=[0, 3]))
    assert type(model) is ConvNextBackbone
    assert model.out_features == ('stage1', 'stage4')


@pytest.mark.parametrize(
    ('picks', 'names'),
    [
        (dict(), ('stage4',)),
        (dict(out_features=ALL_FEATURES), ALL_FEATURES),
        (dict(out_features=['stem', 'stage3']), ('stem', 'stage3')),
        (dict(out_indices=(0, 1, 2, 3)), STAGES),
        (dict(out_indices=range(4)), STAGES),
        (dict(out_indices=[-4, 2, -1]), ('stage1', 'stage3', 'stage4')),
        (dict(out_features=('stage2',), out_indices=(1,)), ('stage2',)),
        (dict(out_features=('stage2', 'stage4'), out_indices=(1, -1)), ('stage2', 'stage4')),
    ],
)
def test_picks(picks, names):
    model = ConvNextBackbone(SMALL, **picks)
    index = [ALL_FEATURES.index(name) for name in names]
    assert model.stage_names == ALL_FEATURES
    assert model.out_features == names
    assert model.out_indices == tuple(i - 1 for i in index if i > 0)
    assert model.num_features == [8, 8, 16, 24, 32]
    assert model.channels == [[8, 8, 16, 24, 32][i] for i in index]
    assert model.strides == [[4, 4, 8, 16, 32][i] for i in index]
    assert list(model.hidden_states_norms) == list(names)
    assert len(model.encoder.stages) == index[-1]
    maps = model(torch.randn(2, 3, 65, 100))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 65 // s, 100 // s) for c, s in zip(model.channels, model.strides, strict=True)
    ]


def test_any_number_of_stages_and_any_patch_size():
    model = ConvNextBackbone(
        dict(depths=[1, 1, 1], hidden_sizes=[8, 8, 16]), patch_size=2, out_indices=(0, 1, 2)
    )
    assert model.stage_names == ('stem', 'stage1', 'stage2', 'stage3')
    assert model.strides == [2, 4, 8]
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 32, 32))] == [16, 8, 4]


def test_return_dict():
    model = small_backbone(out_features=('stage1', 'stage3'))
    images = torch.randn(1, 3, 64, 64)
    output = model(images, return_dict=True)
    assert isinstance(output, ConvNextBackboneOutput)
    assert output.hidden_states is None
    for actual, expected in zip(output.feature_maps, model(images), strict=True):
        assert torch.equal(actual, expected)
    output = model(images, output_hidden_states=True, return_dict=True)
    assert len(output.hidden_states) == 4
    norm = model.hidden_states_norms['stage1']
    assert torch.equal(norm(output.hidden_states[1]), output.feature_maps[0])
    with pytest.raises(ValueError, match='return_dict=True'):
        model(images, output_hidden_states=True)


@pytest.mark.parametrize('weights', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('images', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('training', [False, True])
def test_maps_are_contiguous_in_nchw(weights, images, training):
    model = randomize(small_backbone(out_features=ALL_FEATURES)).train(training)
    x = torch.randn(2, 3, 97, 131)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = model.to(memory_format=weights)
    output = model(x.contiguous(memory_format=images), output_hidden_states=True, return_dict=True)
    for actual, reference in zip(output.feature_maps, expected, strict=True):
        assert actual.is_contiguous()
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-5)
    assert all(h.is_contiguous() for h in output.hidden_states)


def test_moving_to_channels_last_warns_once_about_roi_align():
    model = small_backbone()
    with pytest.warns(UserWarning, match='RoIAlign'):
        model.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.to(torch.float64)
        small_backbone().to(torch.float64)


@pytest.mark.parametrize('out_features', [('stem',), ('stage1', 'stage3'), ('stage4',)])
def test_every_parameter_gets_a_gradient(out_features):
    model = small_backbone(out_features=out_features, layer_scale_init_value=0.5)
    sum(m.square().sum() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages(frozen_stages):
    model = small_backbone(
        out_features=ALL_FEATURES, frozen_stages=frozen_stages, drop_path_rate=0.5
    )
    parts = [model.embeddings, *model.encoder.stages]
    for mode in (True, False, True):
        model.train(mode)
        for depth, part in enumerate(parts):
            frozen = depth <= frozen_stages
            assert all(m.training == (mode and not frozen) for m in part.modules())
            assert all(p.requires_grad != frozen for p in part.parameters())
        assert all(m.training == mode for m in model.hidden_states_norms.modules())
        assert all(p.requires_grad for p in model.hidden_states_norms.parameters())
    sum(m.square().sum() for m in model(torch.randn(2, 3, 64, 64))).backward()
    for depth, part in enumerate(parts):
        for parameter in part.parameters():
            assert (parameter.grad is None) == (depth <= frozen_stages)


def test_frozen_stages_stay_frozen_when_gradients_are_switched_on():
    model = small_backbone(frozen_stages=1)
    model.requires_grad_(True)
    model.train()
    assert not any(p.requires_grad for p in model.encoder.stages[0].parameters())


def test_an_integer_layer_scale_is_a_number():
    scale = small_backbone(layer_scale_init_value=1).encoder.stages[0].layers[0]
    assert scale.layer_scale_parameter.dtype == torch.float32


@pytest.mark.parametrize('use_grn', [False, True])
def test_checkpointing_gives_identical_gradients(use_grn):
    gradients = []
    for with_cp in (False, True):
        model = small_backbone(use_grn=use_grn, with_cp=with_cp, drop_path_rate=0.5)
        randomize(model).train()
        torch.manual_seed(3)
        images = torch.randn(4, 3, 64, 64, requires_grad=True)
        sum(m.square().sum() for m in model(images)).backward()
        gradients.append([images.grad, *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_saves_less_in_modules():
    def saved_bytes(with_cp):
        model = small_backbone(with_cp=with_cp, hidden_act='relu', out_features=('stage4',))
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.randn(1, 3, 128, 128))
        return total

    assert saved_bytes(True) < saved_bytes(False) / 2


def test_default_initialisation():
    model = ConvNextBackbone('atto', layer_scale_init_value=0.125, out_features=ALL_FEATURES)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert not module.bias.any(), name
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
                assert module.weight.mean().item() == pytest.approx(0, abs=1e-3), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
    scales = [p for n, p in model.named_parameters() if n.endswith('layer_scale_parameter')]
    assert len(scales) == 12 and all((s == 0.125).all() for s in scales)


def test_init_weights_leaves_the_default_initialisation_alone():
    model = small_backbone()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_init_cfg_initialises():
    model = small_backbone(init_cfg=dict(type='Constant', layer='Conv2d', val=0.5, bias=0.25))
    model.init_weights()
    conv = model.embeddings.patch_embeddings
    assert (conv.weight == 0.5).all() and (conv.bias == 0.25).all()


def test_init_cfg_loads_a_checkpoint(tmp_path):
    source = randomize(small_backbone(out_features=ALL_FEATURES))
    path = tmp_path / 'weights.pth'
    torch.save({f'convnext.{k}': v for k, v in source.state_dict().items()}, path)
    model = small_backbone(
        out_features=ALL_FEATURES,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='convnext.'),
    )
    model.init_weights()
    images = torch.randn(1, 3, 64, 64)
    for actual, expected in zip(model(images), source(images), strict=True):
        assert torch.equal(actual, expected)


def test_state_dict_names():
    names = set(small_backbone(out_features=('stage1', 'stage2')).state_dict())
    block = ('dwconv', 'layernorm', 'pwconv1', 'pwconv2')
    expected = {'embeddings.patch_embeddings', 'embeddings.layernorm'}
    expected |= {'encoder.stages.1.downsampling_layer.0', 'encoder.stages.1.downsampling_layer.1'}
    expected |= {f'hidden_states_norms.{stage}' for stage in ('stage1', 'stage2')}
    blocks = ['encoder.stages.0.layers.0', 'encoder.stages.0.layers.1', 'encoder.stages.1.layers.0']
    expected |= {f'{prefix}.{part}' for prefix in blocks for part in block}
    expected = {f'{name}.{kind}' for name in expected for kind in ('weight', 'bias')}
    assert names == expected | {f'{prefix}.layer_scale_parameter' for prefix in blocks}


def test_a_whole_state_dict_loads_into_a_truncated_backbone():
    whole = randomize(small_backbone(out_features=ALL_FEATURES))
    part = small_backbone(out_features=('stage2',))
    part.load_state_dict(whole.state_dict(), strict=True)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(part(images)[0], whole(images)[2])


def test_strict_loading_still_refuses_what_does_not_belong():
    state_dict = small_backbone().state_dict()
    with pytest.raises(RuntimeError, match='Unexpected'):
        small_backbone().load_state_dict(
            {**state_dict, 'encoder.stages.4.x': torch.ones(1)}, strict=True
        )
    del state_dict['embeddings.layernorm.weight']
    with pytest.raises(RuntimeError, match='Missing'):
        small_backbone().load_state_dict(state_dict, strict=True)


def test_copies_and_pickles_are_equal_and_independent():
    model = randomize(small_backbone(out_features=('stage4',)))
    images = torch.randn(1, 3, 32, 32)
    expected = model(images)[0]
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    randomize(model, seed=1)
    for other in copies:
        assert torch.equal(other(images)[0], expected)


@pytest.mark.parametrize('name', ALL_FEATURES)
def test_the_smallest_size_that_is_named_works(name):
    model = small_backbone(out_features=(name,))
    size = model.strides[-1]
    assert model(torch.randn(1, 3, size, size))[0].shape[-2:] == (1, 1)
    with pytest.raises(ValueError, match=f'{size}x{size}'):
        model(torch.randn(1, 3, size - 1, size))


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('use_grn', [False, True])
def test_a_batch_of_zero_images(with_cp, use_grn):
    model = small_backbone(
        out_features=ALL_FEATURES, use_grn=use_grn, with_cp=with_cp, drop_path_rate=0.1
    )
    maps = model.train()(torch.randn(0, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (0, c, 64 // s, 96 // s) for c, s in zip(model.channels, model.strides, strict=True)
    ]
    sum(m.sum() for m in maps).backward()


@pytest.mark.parametrize('use_grn', [False, True])
def test_bfloat16_autocast_stays_close(use_grn):
    model = randomize(small_backbone(out_features=ALL_FEATURES, use_grn=use_grn))
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        maps = model(images)
    for actual, reference in zip(maps, expected, strict=True):
        assert (actual - reference).norm() < 0.03 * reference.norm()
