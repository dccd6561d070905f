"""Compares the backbone with transformers', with the same weights."""

from itertools import chain, combinations

import pytest
import torch
from helpers import ALL_FEATURES, SMALL, randomize, small_backbone
from transformers import (
    ConvNextBackbone as HFConvNextBackbone,
)
from transformers import (
    ConvNextConfig,
    ConvNextV2Backbone,
    ConvNextV2Config,
)

from convnext_backbone import ConvNextBackbone

SUBSETS = list(chain.from_iterable(combinations(ALL_FEATURES, n) for n in range(1, 6)))
FAMILIES = {
    'v1': (HFConvNextBackbone, ConvNextConfig, dict(layer_scale_init_value=0.5), {}),
    'v1-no-scale': (
        HFConvNextBackbone,
        ConvNextConfig,
        dict(layer_scale_init_value=0.0),
        dict(layer_scale_init_value=0.0),
    ),
    'v2': (ConvNextV2Backbone, ConvNextV2Config, {}, dict(use_grn=True)),
}


def build_pair(family, out_features):
    model_class, config_class, hf_args, own_args = FAMILIES[family]
    reference = model_class(config_class(**SMALL, **hf_args, out_features=list(out_features)))
    randomize(reference).eval()
    model = small_backbone(out_features=out_features, **own_args)
    model.load_state_dict(reference.state_dict(), strict=True)
    return model, reference


def assert_close(actual, expected):
    """The error is at most 1e-5 of the reference's norm."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize('out_features', SUBSETS, ids='+'.join)
@pytest.mark.parametrize('family', FAMILIES)
def test_features_and_gradients_agree(family, out_features):
    model, reference = build_pair(family, out_features)
    images = torch.randn(2, 3, 97, 131)
    maps, expected_maps = model(images), reference(images).feature_maps
    assert len(maps) == len(expected_maps) == len(out_features)
    for actual, expected in zip(maps, expected_maps, strict=True):
        assert_close(actual, expected)

    torch.manual_seed(1)
    weights = [torch.randn_like(m) for m in expected_maps]
    for outputs in (maps, expected_maps):
        sum((w * m).sum() for w, m in zip(weights, outputs, strict=True)).backward()
    expected_gradients = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.norm() > 0, name
        assert_close(gradient, expected_gradients[name])


@pytest.mark.parametrize('family', FAMILIES)
def test_hidden_states_agree(family):
    model, reference = build_pair(family, ('stage4',))
    images = torch.randn(2, 3, 64, 96)
    output = model(images, output_hidden_states=True, return_dict=True)
    expected = reference(images, output_hidden_states=True).hidden_states
    assert len(output.hidden_states) == len(expected) == 5
    for actual, reference_state in zip(output.hidden_states, expected, strict=True):
        assert_close(actual, reference_state)


@pytest.mark.parametrize('hidden_act', ['gelu', 'gelu_new', 'relu', 'silu'])
def test_activations_agree(hidden_act):
    reference = HFConvNextBackbone(ConvNextConfig(**SMALL, hidden_act=hidden_act))
    randomize(reference).eval()
    model = ConvNextBackbone(SMALL, hidden_act=hidden_act).eval()
    model.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert_close(model(images)[0], reference(images).feature_maps[0])


@pytest.mark.parametrize('family', FAMILIES)
def test_state_dict_loads_back_into_transformers(family):
    model, reference = build_pair(family, ALL_FEATURES)
    reference.load_state_dict(randomize(model, seed=7).state_dict(), strict=True)
    images = torch.randn(1, 3, 32, 32)
    assert_close(model(images)[-1], reference(images).feature_maps[-1])


@pytest.mark.parametrize('fused', [True, False])
def test_maps_of_a_flat_image_agree_for_another_eps(fused):
    """Their variance over the channels is small, so that eps matters."""
    model, reference = build_pair('v1', ALL_FEATURES)
    other = small_backbone(out_features=ALL_FEATURES, norm_eps=1e-3, fused=fused)
    other.load_state_dict(model.state_dict())
    for module in reference.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3
    image = torch.full((1, 3, 64, 64), 1e-2)
    expected = reference(image).feature_maps
    for actual, theirs in zip(other(image), expected, strict=True):
        assert_close(actual, theirs)
    default = model(image)[0]
    assert (default - expected[0]).norm() > 1e-3 * expected[0].norm()
