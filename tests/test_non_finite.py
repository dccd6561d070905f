"""Overflow shows: what is not finite with the modules is not finite with fused operators."""

import pytest
import torch
from helpers import randomize, small_backbone
from torch.nn import functional as F

from convnext_backbone import ConvNextLayer, ConvNextLayerNorm
from convnext_backbone.ops import native
from convnext_backbone.ops.choice import pick_kernels

DTYPES = [torch.float32, torch.bfloat16]
PARAMETERS = [name for name, _ in ConvNextLayer(8).named_parameters()]
GRN_PARAMETERS = ['grn.weight', 'grn.bias', 'pwconv1.bias', 'layernorm.weight']


def make_inputs(dtype):
    return torch.randn(2, 16, 9, 8, dtype=dtype), torch.randn(2, 16, 9, 8, dtype=dtype)


def finite_parts(run, module, features, grad):
    """Where the output and the gradients are finite, by name."""
    module.zero_grad()
    features = features.clone().requires_grad_()
    output = run(features)
    output.backward(grad)
    tensors = {name: p.grad for name, p in module.named_parameters()}
    tensors |= {'output': output, 'input': features.grad}
    return {name: tensor.isfinite() for name, tensor in tensors.items()}


def assert_same_parts(layer, features, grad):
    truth = finite_parts(layer.run_modules, layer, features, grad)
    assert not all(part.all() for part in truth.values())
    for name, part in finite_parts(layer, layer, features, grad).items():
        assert torch.equal(part, truth[name]), name


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('dtype', [*DTYPES, torch.float16])
@pytest.mark.parametrize('use_grn', [False, True])
def test_one_value_of_the_input_or_of_the_gradient(kernels, use_grn, dtype, value):
    layer = randomize(ConvNextLayer(16, use_grn=use_grn)).to(dtype)
    for tensor_index in (0, 1):
        tensors = make_inputs(dtype)
        # In the middle: at the border, some convolutions multiply the padding, and others do not.
        tensors[tensor_index][0, 5, 4, 4] = value
        assert_same_parts(layer, *tensors)


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ('use_grn', 'name'),
    [(False, name) for name in PARAMETERS] + [(True, name) for name in GRN_PARAMETERS],
)
def test_one_value_of_a_parameter(kernels, use_grn, name, value):
    layer = randomize(ConvNextLayer(16, use_grn=use_grn))
    with torch.no_grad():
        layer.get_parameter(name).view(-1)[5] = value
    assert_same_parts(layer, *make_inputs(torch.float32))


@pytest.mark.parametrize('value', [1e25, 1e30])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('use_grn', [False, True])
def test_maps_whose_variance_overflows(kernels, use_grn, dtype, value):
    layer = randomize(ConvNextLayer(16, use_grn=use_grn)).to(dtype)
    features, grad = make_inputs(dtype)
    features[1] *= value
    truth = finite_parts(layer.run_modules, layer, features, grad)
    parts = finite_parts(layer, layer, features, grad)
    for name in ('output', 'input'):
        assert parts[name][0].all()
        assert not parts[name][1].any()
    for name, part in parts.items():
        assert not (part & ~truth[name]).any(), name


@pytest.mark.parametrize('contiguous', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('value', [1e25, torch.nan, torch.inf])
def test_norms_of_maps(kernels, value, dtype, contiguous):
    norm = randomize(ConvNextLayerNorm(16, data_format='channels_first', contiguous=contiguous))
    features, grad = make_inputs(dtype)
    features[1] *= value
    parts = finite_parts(norm, norm, features, grad)
    for name in ('output', 'input'):
        assert parts[name][0].all()
        assert not parts[name][1].any()
    norm.fused = False
    truth = finite_parts(norm, norm, features, grad)
    for name, part in parts.items():
        assert torch.equal(part, truth[name]), name


@pytest.mark.parametrize('channel', range(8))
def test_one_huge_channel_is_not_normalised_to_zero(channel):
    """torch's own norm returns zeros for some of these channels."""
    if not native.load_kernels():
        pytest.skip('the kernels are not built: python -m convnext_backbone.ops.build')
    features = torch.randn(1, 8, 2, 2)
    features[:, channel] = 1e25
    assert ConvNextLayerNorm(8, data_format='channels_first')(features).isnan().all()


def test_gelu_of_huge_values(kernels):
    """The truth is float64: with AVX512, torch's float32 gives inf at 3e38 and NaN at inf."""
    values = [0, 1, 5, 9, 13, 14, 20, 1e10, 1e19, 1e20, 1e25, 1e38, torch.nan, 2, 3, 4]
    inner = torch.tensor([values, [-value for value in values]])
    grad = torch.ones_like(inner)
    truth = torch.ops.aten.gelu_backward(grad.double(), inner.double()).float()
    operators = pick_kernels(inner, torch.float32)
    hidden, _ = operators.gelu_backward_(grad, inner, None, None)
    expected = F.gelu(inner.double()).float()
    torch.testing.assert_close(hidden, expected, equal_nan=True, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grad, truth, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_gelu_of_infinity_is_not_finite(kernels):
    inner = torch.full((2, 16), torch.inf)
    grad = torch.ones_like(inner)
    operators = pick_kernels(inner, torch.float32)
    hidden, _ = operators.gelu_backward_(grad, inner, None, None)
    assert not hidden.isfinite().any()
    assert not grad.isfinite().any()


@pytest.mark.parametrize('value', [torch.nan, torch.inf, 1e25])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('use_grn', [False, True])
def test_bad_values_stay_in_their_sample(kernels, use_grn, train, value):
    model = randomize(small_backbone(use_grn=use_grn, drop_path_rate=0.2)).train(train)
    images = torch.randn(3, 3, 32, 32)
    bad = images.clone()
    bad[1] *= value
    others = torch.tensor([0, 2])
    results = []
    for batch in (images, bad):
        batch.requires_grad_()
        torch.manual_seed(1)
        maps = model(batch)
        torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])
        results.append([*maps, batch.grad])
    for truth, result in zip(*results, strict=True):
        torch.testing.assert_close(result[others], truth[others])
        assert not result[1].isfinite().any()
