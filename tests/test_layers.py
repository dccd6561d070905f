"""Compares the building blocks with closed forms."""

import pytest
import torch
from helpers import randomize

from convnext_backbone import (
    ConvNextDropPath,
    ConvNextEmbeddings,
    ConvNextGRN,
    ConvNextLayer,
    ConvNextLayerNorm,
    drop_path,
)


@pytest.mark.parametrize('shape', [(6,), (6, 3), (6, 3, 5), (6, 3, 5, 7), (6, 3, 5, 7, 2)])
def test_drop_path_drops_whole_samples_and_scales_the_others(shape):
    x = torch.randn(shape)
    kept = 0
    for _ in range(50):
        y = drop_path(x, 0.25, training=True)
        for sample, output in zip(x, y, strict=True):
            dropped = bool((output == 0).all())
            kept += not dropped
            assert dropped or torch.allclose(output, sample / 0.75)
    # 300 draws of probability 0.75: five standard deviations are 37.5.
    assert abs(kept - 225) < 38


def test_drop_path_keeps_the_mean():
    y = drop_path(torch.ones(200_000), 0.3, training=True)
    assert y.mean().item() == pytest.approx(1, abs=0.01)


def test_drop_path_draws_its_probability_in_half_precision_too():
    y = drop_path(torch.ones(200_000, dtype=torch.bfloat16), 0.001, training=True)
    assert (y == 0).float().mean().item() == pytest.approx(0.001, abs=0.0005)


@pytest.mark.parametrize(('drop_prob', 'training'), [(0.5, False), (0.0, True), (0.0, False)])
def test_drop_path_is_an_identity_outside_training_or_at_zero(drop_prob, training):
    x = torch.randn(4, 3)
    assert drop_path(x, drop_prob, training) is x
    assert ConvNextDropPath(drop_prob).train(training)(x) is x


@pytest.mark.parametrize('drop_prob', [-0.1, 1.0, 1.5])
def test_drop_path_refuses_invalid_rates(drop_prob):
    with pytest.raises(ValueError, match=r'\[0, 1\)'):
        drop_path(torch.ones(2), drop_prob, training=True)
    with pytest.raises(ValueError, match=r'\[0, 1\)'):
        ConvNextDropPath(drop_prob)


def layer_norm_by_hand(x, norm, axis):
    """Mean 0 and biased variance 1 along ``axis``, then scale and shift."""
    shape = [1] * x.ndim
    shape[axis] = -1
    mean = x.mean(axis, keepdim=True)
    variance = ((x - mean) ** 2).mean(axis, keepdim=True)
    normalized = (x - mean) / (variance + 1e-6).sqrt()
    return normalized * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize(('data_format', 'axis'), [('channels_last', -1), ('channels_first', 1)])
@pytest.mark.parametrize('shape', [(2, 6, 6, 6), (2, 6, 6)])
def test_layer_norm_normalises_the_channel_axis(data_format, axis, shape):
    norm = randomize(ConvNextLayerNorm(6, data_format=data_format)).double()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(norm(x), layer_norm_by_hand(x, norm, axis))


@pytest.mark.parametrize('data_format', ['channels_last', 'channels_first'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('norm_dtype', ['same', 'float32'])
def test_layer_norm_computes_in_float32(data_format, dtype, norm_dtype):
    norm = randomize(ConvNextLayerNorm(8, data_format=data_format)).to(dtype)
    # Their squares overflow float16, and bfloat16's 8 bits lose their variance.
    x = (1000 + 4 * torch.randn(2, 8, 8, 8)).to(dtype)
    expected = norm.float()(x.float())
    norm = norm if norm_dtype == 'float32' else norm.to(dtype)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), expected.to(dtype))


def test_layer_norm_refuses_another_format():
    with pytest.raises(ValueError, match='channels_first'):
        ConvNextLayerNorm(4, data_format='nchw')


@pytest.mark.parametrize('data_format', ['channels_last', 'channels_first'])
def test_layer_norm_without_weight_or_bias(data_format):
    norm = randomize(ConvNextLayerNorm(8, data_format=data_format))
    x = torch.randn(2, 8, 8, 8)
    truth = norm(x)
    shape = (1, 8, 1, 1) if data_format == 'channels_first' else (8,)
    weight, bias = norm.weight.view(shape), norm.bias.view(shape)
    norm.bias = None
    torch.testing.assert_close(norm(x), truth - bias, rtol=1e-4, atol=1e-5)
    norm.weight = None
    torch.testing.assert_close(weight * norm(x), truth - bias, rtol=1e-4, atol=1e-5)


def test_grn_follows_its_equation():
    grn = randomize(ConvNextGRN(5)).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.empty_like(x)
    for n in range(2):
        norms = torch.stack([(x[n, :, :, c] ** 2).sum().sqrt() for c in range(5)])
        for c in range(5):
            response = norms[c] / (norms.sum() / 5 + 1e-6)
            weight, bias = grn.weight[0, 0, 0, c], grn.bias[0, 0, 0, c]
            expected[n, :, :, c] = weight * x[n, :, :, c] * response + bias + x[n, :, :, c]
    torch.testing.assert_close(grn(x), expected)


def test_grn_starts_as_an_identity():
    x = torch.randn(2, 3, 4, 5)
    grn = ConvNextGRN(5)
    assert grn.weight.shape == grn.bias.shape == (1, 1, 1, 5)
    assert torch.equal(grn(x), x)


def test_grn_survives_sums_beyond_float16():
    grn = randomize(ConvNextGRN(4)).half()
    x = torch.full((1, 32, 32, 4), 60.0, dtype=torch.float16)  # 32 * 32 * 60**2 > 65504
    torch.testing.assert_close(grn(x).float(), grn.float()(x.float()), rtol=1e-2, atol=1e-2)


def test_embeddings_are_a_strided_convolution_and_a_norm():
    stem = randomize(ConvNextEmbeddings(num_channels=2, hidden_size=6, patch_size=4)).double()
    x = torch.randn(2, 2, 9, 13, dtype=torch.float64)
    patches = x[:, :, :8, :12].reshape(2, 2, 2, 4, 3, 4)
    conv = stem.patch_embeddings
    embedded = torch.einsum('nchiwj,ocij->nohw', patches, conv.weight) + conv.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(stem(x), layer_norm_by_hand(embedded, stem.layernorm, 1))


def test_embeddings_name_both_channel_counts():
    with pytest.raises(ValueError, match=r'4 channels.*built for 3'):
        ConvNextEmbeddings(num_channels=3)(torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize('value', [0, 0.0, None])
def test_layer_scale_is_absent_at_zero_or_none(value):
    layer = ConvNextLayer(4, layer_scale_init_value=value)
    assert layer.layer_scale_parameter is None
    assert not [name for name in layer.state_dict() if 'layer_scale' in name]


def test_layer_scale_starts_at_its_value():
    layer = ConvNextLayer(4, layer_scale_init_value=0.25)
    assert layer.layer_scale_parameter.tolist() == [0.25] * 4


@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize('with_cp', [False, True])
def test_layer_gradients_in_float64(use_grn, with_cp):
    layer = ConvNextLayer(2, use_grn=use_grn, layer_scale_init_value=0.5, with_cp=with_cp)
    layer = randomize(layer).double()
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_layer_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match=r'gelu.*relu.*swish'):
        ConvNextLayer(4, hidden_act='swish')
