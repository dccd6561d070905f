"""The deployment form gives the maps of its backbone, and nothing changes it."""

import copy
import pickle

import pytest
import torch
from helpers import SMALL, randomize, small_backbone
from torch import nn

from convnext_backbone import ConvNextBackbone

MAPS = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')


def make(**args):
    return randomize(ConvNextBackbone(SMALL, out_features=MAPS, **args)).eval()


def distance(value, truth):
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize('layer_scale', [1e-6, None])
@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize('size', [(2, 64, 64), (1, 45, 70), (0, 64, 64)])
def test_it_gives_the_maps_of_the_backbone(kernels, use_grn, layer_scale, size):
    model = make(use_grn=use_grn, layer_scale_init_value=layer_scale)
    batch, *sides = size
    images = torch.randn(batch, 3, *sides)
    truth = model.double()(images.double()) if batch else model(images)
    maps = model.float().deploy()(images)
    assert len(maps) == len(truth)
    for value, true in zip(maps, truth, strict=True):
        assert value.shape == true.shape and value.is_contiguous()
        if batch:
            assert distance(value, true) < 1e-5


def test_bfloat16_is_as_close_as_autocast(kernels):
    model = make()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        truth = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            automatic = model(images)
    maps = model.deploy(torch.bfloat16)(images)
    for value, auto, true in zip(maps, automatic, truth, strict=True):
        assert value.dtype == torch.bfloat16
        assert distance(value, true) < 2 * distance(auto, true)


def test_it_is_frozen():
    model = make()
    images = torch.randn(1, 3, 64, 64)
    deployed = model.deploy()
    before = deployed(images)
    randomize(model)
    model.half()
    for value, old in zip(deployed(images), before, strict=True):
        assert torch.equal(value, old)
    assert not any(map.requires_grad for map in before)
    assert not list(deployed.parameters())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(deployed(images)[0], before[0])


@pytest.mark.parametrize('width', [96, 1024])
def test_a_wide_map_is_computed_in_parts(width):
    """More rows than fit into one part."""
    arch = dict(depths=[1], hidden_sizes=[width])
    for use_grn in (False, True):
        model = randomize(ConvNextBackbone(arch, use_grn=use_grn, patch_size=1)).eval()
        images = torch.randn(3, 3, 40, 40 if width == 96 else 16)
        with torch.no_grad():
            (truth,) = model(images)
        assert distance(model.deploy()(images)[0], truth) < 1e-5


def test_what_is_refused():
    model = make()
    with pytest.raises(ValueError, match=r'must be torch\.float32 or torch\.bfloat16'):
        model.deploy(torch.float16)
    deployed = model.deploy()
    with pytest.raises(RuntimeError, match='cannot be trained'):
        deployed.train()
    with pytest.raises(RuntimeError, match='cannot be moved or converted'):
        deployed.half()
    with pytest.raises(ValueError, match=r'must be of shape \(N, 3, H, W\)'):
        deployed(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match='cannot be deployed: their act is GELU'):
        make(hidden_act='gelu_new').deploy()
    model.encoder.stages[1].layers[0].dwconv = nn.Identity()
    with pytest.raises(ValueError, match='cannot be deployed: their dwconv is Identity'):
        model.deploy()
    model = make()
    model.encoder.stages[1].downsampling_layer[1] = nn.Conv2d(8, 16, 2, stride=2, bias=False)
    with pytest.raises(ValueError, match='cannot be deployed: a convolution is now'):
        model.deploy()


@pytest.mark.parametrize(
    'name', ['', 'encoder.stages.1', 'encoder.stages.1.layers.0', 'hidden_states_norms.stage2']
)
def test_hooks_are_not_lost(name):
    model = small_backbone().eval()
    hook = model.get_submodule(name).register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=f'would not run the hooks on {name or "itself"}'):
        model.deploy()
    hook.remove()
    model.deploy()


class Doubled(ConvNextBackbone):
    def forward(self, pixel_values):
        return tuple(2 * features for features in super().forward(pixel_values))


def test_a_replaced_forward_is_not_lost():
    with pytest.raises(ValueError, match='its forward was replaced'):
        Doubled(SMALL).eval().deploy()
    model = make()
    model.embeddings.forward = lambda pixel_values: pixel_values
    with pytest.raises(ValueError, match='its forward was replaced'):
        model.deploy()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda m: m.encoder.stages[1].layers.append(nn.ReLU()), 'other layers than it was built'),
        (lambda m: m.encoder.stages[1].downsampling_layer.append(nn.ReLU()), 'other layers than'),
        (lambda m: setattr(m, 'embeddings', nn.Identity()), 'a part is now Identity'),
        (lambda m: m.hidden_states_norms.update({'stage1': nn.Identity()}), 'now Identity'),
        (lambda m: m.encoder.stages.append(nn.Identity()), 'a part is now Identity'),
    ],
)
def test_additional_and_replaced_parts_are_refused(change, message):
    model = make()
    change(model)
    with pytest.raises(ValueError, match=f'cannot be deployed: .*{message}'):
        model.deploy()


@pytest.mark.parametrize('save', [copy.deepcopy, pickle.dumps, nn.Module.state_dict])
def test_it_is_not_saved_without_its_weights(save):
    whole = nn.Sequential(small_backbone().eval().deploy())
    with pytest.raises(RuntimeError, match=r'save the ConvNextBackbone and call deploy\(\) again'):
        save(whole)


def test_bad_images_are_refused_as_by_the_backbone():
    deployed = small_backbone().eval().deploy()
    with pytest.raises(ValueError, match='too small for stage'):
        deployed(torch.zeros(1, 3, 2, 2))
    with pytest.raises(TypeError, match='must be floating point'):
        deployed(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize('settings', [dict(padding=2), dict(groups=2)])
def test_another_convolution_in_the_stem_is_refused(settings):
    model = small_backbone(num_channels=4).eval()
    conv = model.embeddings.patch_embeddings
    model.embeddings.patch_embeddings = nn.Conv2d(4, conv.out_channels, 4, 4, **settings)
    with pytest.raises(ValueError, match='a convolution is now'):
        model.deploy()


def test_dilated_stages_are_refused():
    with pytest.raises(ValueError, match='cannot be deployed with output_stride'):
        small_backbone(output_stride=8).eval().deploy()


def test_another_norm_in_a_downsampling_is_refused():
    backbone = small_backbone(out_features=['stage2']).eval()
    downsampling = backbone.encoder.stages[1].downsampling_layer
    downsampling[0] = torch.nn.BatchNorm2d(downsampling[0].weight.numel()).eval()
    with pytest.raises(ValueError, match='a norm is now BatchNorm2d'):
        backbone.deploy()
