"""Relatives of ConvNeXt that the package does not build are refused with the true reason."""

import pytest
from checkpoint_files import make_reference, noise, timm
from helpers import same_tensors, small_backbone

from convnext_backbone import infer_arch, load_checkpoint

NORMS = ('stem.1.', 'downsample.0.', '.norm.')


def overlap(weights):
    """The names and shapes of timm's ``stem_type='overlap'``."""
    norm = {f'stem.2.{leaf}': weights[f'stem.1.{leaf}'] for leaf in ('weight', 'bias')}
    weights |= norm | {'stem.0.weight': noise(8, 3, 3, 3), 'stem.1.weight': noise(8, 8, 3, 3)}
    return weights


def overlap_act(weights):
    """Those of ``stem_type='overlap_act'``."""
    norm = {f'stem.3.{leaf}': weights.pop(f'stem.1.{leaf}') for leaf in ('weight', 'bias')}
    convolutions = {'stem.0.weight': noise(8, 3, 3, 3), 'stem.2.weight': noise(8, 8, 3, 3)}
    return weights | norm | convolutions | {'stem.2.bias': noise(8)}


def rms(weights):
    """Those of ``norm_layer='rmsnorm2d'``."""
    return {
        name: tensor
        for name, tensor in weights.items()
        if not (name.endswith('.bias') and any(norm in name for norm in NORMS))
    }


def kernels(weights):
    """Those of ``kernel_sizes=(7, 5, 5, 9)``."""
    for name, tensor in weights.items():
        size = {'1': 5, '2': 5, '3': 9}.get(name.split('.')[1])
        if 'conv_dw.weight' in name and size:
            weights[name] = noise(len(tensor), 1, size, size)
    return weights


def conv_without_bias(weights):
    """Those of ``conv_bias=False``."""
    convolutions = ('stem.0.bias', 'downsample.1.bias', 'conv_dw.bias')
    return {name: t for name, t in weights.items() if not name.endswith(convolutions)}


VARIANTS = [
    (overlap, r'stack of convolutions \(overlapping stem\)'),
    (overlap_act, r'stack of convolutions \(overlapping stem\)'),
    (rms, r'norms have no bias \(RMSNorm'),
    (kernels, r'depthwise convolutions of 5x5, 9x9, not 7x7'),
    (conv_without_bias, 'convolutions have no bias'),
]


@pytest.mark.parametrize(('variant', 'reason'), VARIANTS)
def test_variants_are_refused_with_the_reason(variant, reason):
    model = small_backbone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = variant(timm(make_reference().state_dict()))
    for load in (
        lambda: load_checkpoint(model, weights),
        lambda: model.load_state_dict(weights),
        lambda: infer_arch(weights),
    ):
        with pytest.raises(ValueError, match=reason) as info:
            load()
        assert 'damaged' not in str(info.value)
    assert same_tensors(before, model.state_dict())


def test_a_file_that_lacks_a_few_biases_is_damaged():
    weights = timm(make_reference().state_dict())
    for name in ('stem.1.bias', 'stages.0.blocks.0.norm.bias', 'stages.2.blocks.1.conv_dw.bias'):
        del weights[name]
    with pytest.raises(ValueError, match='but the file is damaged'):
        load_checkpoint(small_backbone(), weights)
