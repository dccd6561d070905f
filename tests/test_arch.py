"""Compares the table of architectures with the papers' figures."""

import pytest
import torch

from convnext_backbone import ConvNextBackbone
from convnext_backbone.arch import ARCHS

# Millions of parameters with a head of 1000 classes, as printed: ConvNeXt, tables 1 and 12, and
# ConvNeXt V2, table 9 (appendix).
PUBLISHED_PARAMS = {
    'tiny': 28.6,
    'small': 50,
    'base': 89,
    'large': 198,
    'xlarge': 350,
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
        *('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base', 'large', 'xlarge'),
        *('v2-atto', 'v2-femto', 'v2-pico', 'v2-nano', 'v2-tiny'),
        *('v2-base', 'v2-large', 'v2-huge'),
    ]


@pytest.mark.parametrize('arch', ARCHS)
def test_v2_means_grn_and_no_layer_scale(arch):
    with torch.device('meta'):
        names = ConvNextBackbone(arch).state_dict().keys()
    assert any('.grn.' in name for name in names) == arch.startswith('v2-')
    assert any('layer_scale' in name for name in names) == (not arch.startswith('v2-'))
