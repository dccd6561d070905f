"""Compares the table of architectures with the papers' figures."""

import pytest
import torch

from convnext_backbone import ConvNextBackbone, ConvNextModel, infer_arch
from convnext_backbone.arch import ARCHS

# Millions of parameters with a head of 1000 classes, as printed: ConvNeXt, tables 1 and 12, and
# ConvNeXt V2, table 9 (appendix). That of xxlarge is timm's.
PUBLISHED_PARAMS = {
    'tiny': 28.6,
    'small': 50,
    'base': 89,
    'large': 198,
    'xlarge': 350,
    'xxlarge': 846,
    'v2-atto': 3.7,
    'v2-femto': 5.2,
    'v2-pico': 9.1,
    'v2-nano': 15.6,
    'v2-tiny': 28.6,
    'v2-base': 89,
    'v2-large': 198,
    'v2-huge': 660,
}


@pytest.mark.parametrize('arch', PUBLISHED_PARAMS)
def test_parameters_are_those_published(arch):
    with torch.device('meta'):
        model = ConvNextBackbone(arch)
    params = sum(p.numel() for p in model.parameters()) + model.channels[-1] * 1000 + 1000
    published = PUBLISHED_PARAMS[arch]
    assert round(params / 1e6, 1 if published < 50 else 0) == published


def test_all_names_exist():
    assert list(ARCHS) == [
        *('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base', 'large', 'xlarge', 'xxlarge'),
        *('v2-atto', 'v2-femto', 'v2-pico', 'v2-nano', 'v2-tiny'),
        *('v2-base', 'v2-large', 'v2-huge'),
    ]


@pytest.mark.parametrize('arch', ARCHS)
def test_v2_means_grn_and_no_layer_scale(arch):
    with torch.device('meta'):
        names = ConvNextBackbone(arch).state_dict().keys()
    assert any('.grn.' in name for name in names) == arch.startswith('v2-')
    assert any('layer_scale' in name for name in names) == (not arch.startswith('v2-'))


def norm_eps(model: torch.nn.Module) -> dict[str, float]:
    return {n: m.eps for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}


def test_every_norm_of_xxlarge_has_the_eps_of_timm():
    features = dict(out_features=('stem', 'stage1', 'stage2', 'stage3', 'stage4'))
    shape = dict(depths=[3, 4, 30, 3], hidden_sizes=[384, 768, 1536, 3072])
    with torch.device('meta'):
        models = [
            ConvNextBackbone('xxlarge', **features),
            ConvNextModel('xxlarge'),
            ConvNextModel(shape),
            ConvNextModel(**infer_arch(ConvNextModel('xxlarge').state_dict())),
        ]
    # One norm in the stem, three before stages, one per block, and those of the maps or pooled.
    assert [len(norm_eps(model)) for model in models] == [1 + 3 + 40 + 5] + 3 * [1 + 3 + 40 + 1]
    assert all(set(norm_eps(model).values()) == {1e-5} for model in models)
    assert infer_arch(models[0].state_dict())['arch'] == 'xxlarge'


def test_eps_of_all_other_architectures_are_those_of_hugging_face():
    with torch.device('meta'):
        eps = norm_eps(ConvNextModel('atto'))
    assert eps.pop('layernorm') == 1e-12
    assert set(eps.values()) == {1e-6}


def test_arguments_set_the_eps_of_each_norm():
    with torch.device('meta'):
        eps = norm_eps(ConvNextModel('xxlarge', norm_eps=1e-3, layer_norm_eps=1e-2))
        maps = norm_eps(ConvNextBackbone('v2-atto', out_features=('stem', 'stage2'), norm_eps=1e-3))
    assert eps.pop('layernorm') == 1e-2
    assert set(eps.values()) == set(maps.values()) == {1e-3}


def test_an_eps_for_a_norm_that_the_backbone_does_not_have_is_reported():
    with torch.device('meta'), pytest.warns(UserWarning, match='its norms have norm_eps=1e-06'):
        ConvNextBackbone('atto', layer_norm_eps=1e-5)
