"""The Triton kernels of the depthwise convolution and the norm, run by Triton's interpreter.

The truth is that of torch operators in float64. The interpreter needs seconds for a few programs,
so the maps are small. It rounds to bfloat16 by cutting digits off, where a card rounds to the
nearest.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import REPO

from convnext_backbone.ops import (
    choice,
    native,
    portable,
)

pytest.importorskip('triton')

from triton.runtime.interpreter import GridExecutor, InterpretedFunction, interpreter_builder

from convnext_backbone.ops import triton_kernels
from convnext_backbone.ops.triton_kernels import depthwise, depthwise_weight

pytestmark = pytest.mark.skipif(
    not isinstance(depthwise._depthwise_norm, InterpretedFunction),
    reason='TRITON_INTERPRET=0: the kernels are compiled',
)

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
    return [t.double() for t in tensors]


def check(value, truth, dtype=F32, atol=2e-5):
    """Compares with the truth in float64, up to one rounding to the dtype of the result."""
    assert value.dtype == dtype and value.is_contiguous()
    torch.testing.assert_close(value.double(), truth, rtol=ROUNDING[dtype], atol=atol)


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


@pytest.mark.parametrize('channels', [24, 96, 160, 640, 2048, 2816])
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
    truth = F.layer_norm(features.double(), weight.shape, *wide(weight, bias), EPS)
    if channels_first:
        truth = truth.permute(0, 3, 1, 2)
    check(triton_kernels.norm(features, weight, bias, EPS, channels_first), truth, dtype)


def test_norm_of_the_widest_map():
    features, (_, _, weight, bias) = maps(1, 3, 6, 2816), vectors(2816)
    truth = F.layer_norm(features.double(), weight.shape, *wide(weight, bias), EPS)
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
        truths, values = (
            getattr(module, name)(*arguments) for module in (portable, triton_kernels)
        )
        for truth, value in zip(as_tuple(truths), as_tuple(values), strict=True):
            assert not truth.isfinite().all()
            assert torch.equal(truth.isfinite(), value.isfinite()), name
    normed = triton_kernels.norm(features, weight, bias, EPS, False)
    assert torch.equal(normed.isfinite().all(-1), features.isfinite().all(-1))
    arguments = features, maps(1, 5, 9, 8)
    truth = portable.depthwise_weight_grad(*arguments)
    value = triton_kernels.depthwise_weight_grad(*arguments)
    assert not truth.isfinite().all()
    # A product with a zero beside the map is no number either.
    assert not (value.isfinite() & ~truth.isfinite()).any()
    assert value[:, [0, 1, 2, 4, 5, 6, 7]].isfinite().all()


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


def run_last_program(launch, monkeypatch, **arguments):
    """Runs only the last of the programs along the first axis."""
    last = launch.grid[0] - 1
    set_place, set_size = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim
    with monkeypatch.context() as patch:
        patch.setattr(interpreter_builder, 'set_grid_idx', lambda x, y, z: set_place(last, y, z))
        patch.setattr(interpreter_builder, 'set_grid_dim', lambda x, y, z: set_size(last + 1, y, z))
        # It copies every tensor onto itself.
        patch.setattr(GridExecutor, '_restore_args_dev', lambda *args: None)
        grid = (1, *launch.grid[1:])
        launch._replace(grid=grid, arguments=launch.arguments | arguments).run()


@pytest.mark.parametrize(
    ('name', 'height'),
    [
        *(('depthwise_norm', 1), ('depthwise_input_grad', 1)),
        *(('depthwise_input_grad', 2**31 // 40 + 3), ('norm', 2**31 // 40 + 3)),
    ],
)
def test_a_map_may_have_more_than_two_to_the_31_elements(name, height, monkeypatch):
    """Only the end of the map is used: memory that nobody touches is not there."""
    count = 2**31 // 40 + 3
    big = torch.empty(count // height, height, 1, 40, dtype=BF16)
    taps, bias, weight, shift = vectors(40)
    tail = big.view(-1, 40)[-20:]
    tail.copy_(maps(20, 40))
    make = {
        'depthwise_norm': lambda t: (t, taps, bias, weight, shift, EPS, BF16, True),
        'depthwise_input_grad': lambda t: (t, taps, t),
        'norm': lambda t: (t, weight, shift, EPS, False),
    }[name]
    # The end of a map of rows has rows above it. An image has no neighbours.
    small = tail.clone().view(1, 20, 1, 40) if height > 1 else tail[-1:].clone().view(1, 1, 1, 40)
    expected = as_tuple(getattr(triton_kernels, name)(*make(small)))[0]
    _, (launch,) = getattr(triton_kernels, f'plan_{name}')(*make(big.to('meta')))
    maps_of = {'features', 'grad', 'grad_output', 'grad_input', 'normed', 'convolved', 'output'}
    run_last_program(launch, monkeypatch, **dict.fromkeys(maps_of & launch.arguments.keys(), big))
    assert torch.equal(big.view(-1, 40)[-1], expected.view(-1, 40)[-1])


def test_the_weight_gradient_of_more_than_two_to_the_31_elements(tmp_path, monkeypatch):
    """The last program, in its first 32 channels: it has the gradients of 16 rows."""
    channels = 2816
    height = 2**31 // (16 * 4 * channels) * 16 + 16
    big = torch.empty(1, height, 4, channels, dtype=BF16)
    features, seen = big[:, -19:], maps(1, 19, 4, 32, dtype=BF16)
    features[..., :32] = seen
    grad = seen.clone()
    grad[:, :3] = 0
    _, (launch, _) = triton_kernels.plan_depthwise_weight_grad(*[big.to('meta')] * 2)
    count = height // 16
    # Every program has a place for its sums. A file has no memory where nobody writes.
    sizes = dict(size=count * 49 * channels, dtype=F32)
    partials = torch.from_file(str(tmp_path / 'partials'), shared=True, **sizes)
    launch = launch._replace(grid=(count, 1))
    run_last_program(launch, monkeypatch, features=big, grad=big, partials=partials)
    sums = partials.view(count, 49, channels)[-1, :, :32]
    check(sums.contiguous(), portable.depthwise_weight_grad(*wide(seen, grad)), atol=1e-4)


COUNT_KEYS = """
import random

import torch
from ahead_of_time import compile_key

from convnext_backbone.ops import triton_kernels

def keys(shape, dtype):
    maps = torch.empty(shape, dtype=dtype, device='meta')
    taps = torch.empty(49, shape[-1], device='meta')
    vector = taps[0]
    plans = (
        triton_kernels.plan_depthwise_norm(maps, taps, vector, vector, vector, 1e-6, dtype, True),
        triton_kernels.plan_depthwise_input_grad(maps, taps, maps),
        triton_kernels.plan_depthwise_weight_grad(maps, maps),
        triton_kernels.plan_norm(maps, vector, vector, 1e-6, True),
    )
    return {compile_key(launch) for _, launches in plans for launch in launches}

random.seed(0)
for channels in (40, 2816):
    sizes = [random.choices(range(1, 400), k=2) for _ in range(50)]
    shapes = [(random.randint(1, 16), *size, channels) for size in sizes]
    first, *others = [keys(shape, torch.bfloat16) for shape in shapes]
    assert len(first) == 5 and all(other == first for other in others)
assert first != keys((1, 1, 1, 40), torch.bfloat16)  # other widths do differ
"""


def test_new_sizes_compile_nothing():
    """In a process without the interpreter, whose kernels are not compiled."""
    path = os.pathsep.join([str(REPO / 'tools/analysis_tools'), str(REPO)])
    environment = os.environ | dict(PYTHONPATH=path, TRITON_INTERPRET='0')
    command = [sys.executable, '-c', COUNT_KEYS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_tensors_on_a_cpu_do_not_use_triton():
    assert native.have_triton()
    features = maps(1, 2, 2, 8)
    assert not native.have_triton_kernels(features.device, 8, F32)
    assert choice.pick_kernels(features, F32) is not triton_kernels


@pytest.mark.cuda
def test_tensors_on_a_gpu_use_triton(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, 'triton')
    features = maps(1, 2, 2, 8).cuda()
    assert choice.pick_kernels(features, F32) is triton_kernels
    assert choice.pick_kernels(features, torch.float64) is portable
    assert choice.pick_kernels(features[..., :4], F32) is portable
