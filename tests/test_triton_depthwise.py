"""The Triton kernels of the depthwise convolution and of the norm, compiled or interpreted.

The truth is that of torch operators in float64 on the CPU. The interpreter needs seconds for a few
programs, so the maps are small. It rounds to bfloat16 by cutting digits off, where a card rounds to
the nearest.
"""

import pytest
import torch
import torch.nn.functional as F

from convnext_backbone.ops import portable

pytest.importorskip('triton', minversion='3.7')

from convnext_backbone.ops import triton_kernels
from convnext_backbone.ops.triton_kernels import depthwise_weight

pytestmark = pytest.mark.usefixtures('triton_device')

F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# The input's dtype and that of the matrix products.
TYPES = [(F32, F32), (BF16, BF16), (FP16, FP16), (F32, BF16), (BF16, F32)]

# The largest relative error of one rounding.
ROUNDING = {F32: 2e-6, BF16: 2**-7, FP16: 2**-11}

EPS = 1e-6


def maps(*shape, dtype=F32):
    return torch.randn(shape).to(dtype)


def vectors(channels):
    """Taps, the convolution's bias, and the norm's weight and bias."""
    return torch.randn(49, channels), *(torch.randn(channels) for _ in range(3))


def wide(*tensors):
    return [t.double().cpu() for t in tensors]


def check(value, truth, dtype=F32, atol=2e-5):
    """Compares with the truth in float64, up to one rounding to the dtype of the result."""
    assert value.dtype == dtype and value.is_contiguous()
    torch.testing.assert_close(*wide(value), truth, rtol=ROUNDING[dtype], atol=atol)


def check_depthwise_norm(shape, dtype=F32, product=F32, keep=True):
    features, parameters = maps(*shape, dtype=dtype), vectors(shape[-1])
    truth = portable.depthwise_norm(*wide(features, *parameters), EPS, torch.float64, True)
    results = triton_kernels.depthwise_norm(features, *parameters, EPS, product, keep)
    check(results[0], truth[0], product)
    if keep:
        # Gradients are written over it. In float16, they would not be in range.
        check(results[1], truth[1], F32 if product == FP16 else product)
    else:
        assert results[1].numel() == 0


@pytest.mark.parametrize(('dtype', 'product'), TYPES, ids=str)
def test_depthwise_norm_in_every_dtype(dtype, product):
    check_depthwise_norm((1, 3, 2, 24), dtype, product)


@pytest.mark.parametrize('channels', [24, 96, 160, 640, 2048, 3072])
def test_depthwise_norm_in_every_class_of_widths(channels):
    check_depthwise_norm((1, 1, 2, channels), keep=channels != 96)


# More pixels than a tile has, fewer than the taps reach, and several images.
SHAPES = [(1, 1, 1, 8), (2, 2, 9, 8), (0, 4, 4, 8)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_depthwise_norm_at_edges(shape):
    check_depthwise_norm(shape)


def check_input_grad(shape, dtype=F32, product=F32):
    grad, grad_output, taps = (
        maps(*shape, dtype=product),
        maps(*shape, dtype=dtype),
        vectors(shape[-1])[0],
    )
    truth = portable.depthwise_input_grad(*wide(grad, taps, grad_output))
    check(triton_kernels.depthwise_input_grad(grad, taps, grad_output), truth, dtype)


@pytest.mark.parametrize(('dtype', 'product'), TYPES, ids=str)
def test_depthwise_input_grad_in_every_dtype(dtype, product):
    check_input_grad((1, 3, 2, 32), dtype, product)


@pytest.mark.parametrize('channels', [40, 128])
def test_depthwise_input_grad_in_every_class_of_widths(channels):
    check_input_grad((1, 2, 2, channels))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_depthwise_input_grad_at_edges(shape):
    check_input_grad(shape)


def check_weight_grad(shape, dtype=F32, product=F32):
    features, grad = maps(*shape, dtype=dtype), maps(*shape, dtype=product)
    truth = portable.depthwise_weight_grad(*wide(features, grad))
    check(triton_kernels.depthwise_weight_grad(features, grad), truth, atol=1e-4)


@pytest.mark.parametrize(('dtype', 'product'), TYPES, ids=str)
def test_depthwise_weight_grad_in_every_dtype(dtype, product):
    check_weight_grad((1, 3, 2, 32), dtype, product)


@pytest.mark.parametrize('shape', [*SHAPES, (1, 2, 2, 40)], ids=str)
def test_depthwise_weight_grad_at_edges(shape):
    check_weight_grad(shape)


def test_programs_of_the_weight_gradient_share_the_tiles(monkeypatch):
    monkeypatch.setattr(depthwise_weight, 'MIN_TILES', 1)
    monkeypatch.setattr(depthwise_weight, 'MAX_PROGRAMS', 2)
    features = maps(1, 13, 9, 8)
    _, launches = triton_kernels.plan_depthwise_weight_grad(features, features)
    assert launches[0].grid == (2, 1)  # for 12 tiles: four and eight
    check_weight_grad(features.shape)


@pytest.mark.parametrize('channels_first', [False, True])
@pytest.mark.parametrize('dtype', [F32, BF16, FP16], ids=str)
@pytest.mark.parametrize('shape', [(0, 3, 3, 8), (2, 9, 8, 40), (1, 1, 1, 96), (1, 5, 7, 264)])
def test_norm(shape, dtype, channels_first):
    features, (_, _, weight, bias) = maps(*shape, dtype=dtype) + 1, vectors(shape[-1])
    truth = F.layer_norm(*wide(features), weight.shape, *wide(weight, bias), EPS)
    if channels_first:
        truth = truth.permute(0, 3, 1, 2)
    check(triton_kernels.norm(features, weight, bias, EPS, channels_first), truth, dtype)


def test_norm_of_the_widest_map():
    features, (_, _, weight, bias) = maps(1, 3, 6, 3072), vectors(3072)
    truth = F.layer_norm(*wide(features), weight.shape, *wide(weight, bias), EPS)
    check(triton_kernels.norm(features, weight, bias, EPS, True), truth.permute(0, 3, 1, 2))


@pytest.mark.filterwarnings('ignore:invalid value')
@pytest.mark.parametrize('bad', [torch.nan, -torch.inf])
def test_values_that_are_not_finite_spread_as_in_torch(bad):
    """They reach the same values as in the torch operators, and none outside of the maps."""
    features, parameters = maps(1, 5, 9, 8), vectors(8)
    features[0, 1, 8, 3] = bad
    taps, _, weight, bias = parameters
    calls = {
        'depthwise_norm': (features, *parameters, EPS, F32, True),
        'depthwise_input_grad': (features, taps, maps(1, 5, 9, 8)),
    }
    for name, arguments in calls.items():
        truths = getattr(portable, name)(*on_the_cpu(arguments))
        values = getattr(triton_kernels, name)(*arguments)
        for truth, value in zip(as_tuple(truths), as_tuple(values), strict=True):
            assert not truth.isfinite().all()
            assert torch.equal(truth.isfinite(), value.isfinite().cpu()), name
    normed = triton_kernels.norm(features, weight, bias, EPS, False)
    assert torch.equal(normed.isfinite().all(-1), features.isfinite().all(-1))
    arguments = features, maps(1, 5, 9, 8)
    truth = portable.depthwise_weight_grad(*on_the_cpu(arguments))
    value = triton_kernels.depthwise_weight_grad(*arguments).cpu()
    assert not truth.isfinite().all()
    # A product with a zero beside the map is no number either.
    assert not (value.isfinite() & ~truth.isfinite()).any()
    assert value[:, [0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def on_the_cpu(arguments):
    return [a.cpu() if torch.is_tensor(a) else a for a in arguments]


def as_tuple(output):
    return output if isinstance(output, tuple) else (output,)


def test_memory_beside_the_maps_is_not_used():
    """A map between values that are not numbers gives the same result, bit by bit."""
    size = 2 * 3 * 5 * 8
    around = torch.full((3 * size,), torch.nan)
    inside = around[size : 2 * size].view(2, 3, 5, 8)
    inside.copy_(maps(2, 3, 5, 8))
    alone, parameters = inside.clone(), vectors(8)

    def run(features):
        yield from triton_kernels.depthwise_norm(features, *parameters, EPS, F32, True)
        yield triton_kernels.depthwise_input_grad(features, parameters[0], features)
        yield triton_kernels.depthwise_weight_grad(features, features)
        yield triton_kernels.norm(features, *parameters[2:], EPS, True)

    for one, other in zip(run(inside), run(alone), strict=True):
        assert one.isfinite().all() and torch.equal(one, other)


def test_a_map_with_gaps_is_an_error():
    features = maps(1, 8, 3, 3).permute(0, 2, 3, 1)
    with pytest.raises(ValueError, match=r'features must be contiguous.*call \.contiguous\(\)'):
        triton_kernels.depthwise_weight_grad(features, features)
