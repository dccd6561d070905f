"""Half precision: fused blocks are as accurate as their modules, and gradients stay in range."""

import copy

import pytest
import torch
from helpers import SMALL, randomize
from torch.nn import functional as F

from convnext_backbone import ConvNextBackbone, ConvNextGRN, ConvNextLayer
from convnext_backbone.ops import block

DIM, SHAPE = 40, (4, 40, 8, 8)

# Three standard deviations: the smallest tensors have 40 numbers in each of 8 runs, so the root
# mean square of their errors is known to 4%, and the ratio of two to 6%.
SLACK = 1.2

# The rounding of float32, which depends on the order of sums. Closer than this is equally close.
FLOAT32_NOISE = 1e-6

# The arguments of a block, and: the size of the feature maps, how much of a gradient is the same in
# all pixels (as that of a mean is), whether the layer scale is random, and the factor of the norm's
# weight, which makes hidden activations large; the second weight has its inverse.
CASES = {
    'drop path': (dict(drop_path=0.5, layer_scale_init_value=1.0), dict()),
    'small layer scale': (dict(layer_scale_init_value=1e-6), dict(steady=1.0)),
    'random layer scale': (dict(), dict(random_scale=True, steady=1.0)),
    'grn': (dict(layer_scale_init_value=None, use_grn=True), dict(size=3.0)),
    'grn, drop path': (dict(drop_path=0.5, use_grn=True), dict(random_scale=True)),
    'large activations': (dict(layer_scale_init_value=1.0), dict(size=3000.0)),
    'large hidden activations': (dict(layer_scale_init_value=1.0), dict(hidden=2000.0)),
    'large activations, grn': (
        dict(layer_scale_init_value=None, use_grn=True),
        dict(size=3000.0, hidden=2000.0, steady=1.0),
    ),
}


@pytest.fixture(
    params=['cpu', *(pytest.param(k, marks=pytest.mark.cuda) for k in ('triton', 'torch'))]
)
def device(request, monkeypatch):
    """The CPU, or a card with one of its kinds of kernels."""
    if request.param == 'cpu':
        return 'cpu'
    monkeypatch.setenv('CONVNEXT_KERNELS', request.param)
    return 'cuda'


def make_case(name, seed, dtype=torch.float32, device='cpu', grad_size=0.02):
    """A block with random weights, feature maps, and a gradient with respect to its output."""
    args, options = CASES[name]
    layer = ConvNextLayer(DIM, **args)
    scale = layer.layer_scale_parameter
    initial = None if scale is None else scale.detach().clone()
    randomize(layer, seed)
    with torch.no_grad():
        layer.layernorm.weight += 1
        layer.layernorm.weight *= options.get('hidden', 1.0)
        layer.pwconv2.weight /= options.get('hidden', 1.0)
        if initial is not None and 'random_scale' not in options:
            scale.copy_(initial)
    torch.manual_seed(seed)
    features = torch.randn(SHAPE) * options.get('size', 1.0)
    grad = torch.randn(SHAPE) + options.get('steady', 0.0) * torch.randn(DIM, 1, 1)
    return layer.to(device, dtype), features.to(device, dtype), (grad_size * grad).to(device, dtype)


def gradients(layer, features, grad, fused=True, autocast=None):
    """The output and the gradients, by name."""
    layer.fused = fused
    layer.zero_grad()
    features = features.clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast(features.device.type, autocast, enabled=autocast is not None):
        output = layer(features)
    output.backward(grad.to(output.dtype))
    parameters = {name: p.grad for name, p in layer.named_parameters()}
    return dict(output=output.detach(), input=features.grad) | parameters


def exact_gradients(layer, features, grad):
    return gradients(copy.deepcopy(layer).double(), features.double(), grad.double(), fused=False)


def relative(value, truth):
    return ((value.double() - truth).norm() / truth.norm().clamp(min=1e-300)).item()


def errors(name, dtype, pure, device, seeds=range(8)):
    """Errors of fused blocks and of their modules: root mean squares over some seeds, by tensor."""
    sums = {}
    for seed in seeds:
        layer, features, grad = make_case(name, seed, dtype if pure else torch.float32, device)
        truth = exact_gradients(layer, features, grad)
        for fused in (True, False):
            autocast = None if pure else dtype
            for key, value in gradients(layer, features, grad, fused, autocast).items():
                pair = sums.setdefault(key, {True: 0.0, False: 0.0})
                pair[fused] += relative(value, truth[key]) ** 2 / len(seeds)
    return {key: (pair[True] ** 0.5, pair[False] ** 0.5) for key, pair in sums.items()}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('pure', [False, True], ids=['autocast', 'pure'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_as_close_as_those_of_the_modules(dtype, pure, name, device):
    for key, (fused, modules) in errors(name, dtype, pure, device).items():
        slack = SLACK
        if (key, dtype, pure, device) == ('layer_scale_parameter', torch.bfloat16, True, 'cpu'):
            slack = 1.6  # a processor with bfloat16 rounds its products once more
        assert fused < max(slack * modules, FLOAT32_NOISE), key
        assert fused < 0.3, key  # so that two infinite errors are not equally close


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('name', ['small layer scale', 'grn, drop path'])
def test_parts_add_up(name, with_cp, monkeypatch):
    layer, features, grad = make_case(name, 0)
    layer.with_cp = with_cp
    truth = exact_gradients(layer, features, grad)
    monkeypatch.setattr(block, 'PART_BYTES', 2 * 4 * DIM * 30)  # thirty rows
    for key, value in gradients(layer, features, grad, autocast=torch.float16).items():
        assert relative(value, truth[key]) < 2e-3, key


def test_small_layer_scales_under_a_loss_scale(device):
    """Gradients of 1e-8 times 65536: too small for float16 once multiplied by the layer scale."""
    layer, features, grad = make_case('small layer scale', 0, device=device, grad_size=65536e-8)
    truth = exact_gradients(layer, features, grad)
    modules = gradients(layer, features, grad, fused=False, autocast=torch.float16)
    fused = gradients(layer, features, grad, autocast=torch.float16)
    inside = [key for key in truth if key.startswith(('dwconv', 'layernorm', 'pwconv'))]
    assert all(modules[key].count_nonzero() == 0 for key in inside)
    for key, value in fused.items():
        assert relative(value, truth[key]) < 1e-3, key


@pytest.mark.parametrize('size', [1e-25, 1e-12, 1e6, 1e15])
@pytest.mark.parametrize('name', ['drop path', 'small layer scale', 'grn', 'grn, drop path'])
def test_gradients_of_any_size(name, size, device):
    """They are as accurate as those of size 1: only exponents differ."""
    layer, features, grad = make_case(name, 0, device=device, grad_size=size)
    truth = exact_gradients(layer, features, grad)
    for key, value in gradients(layer, features, grad, autocast=torch.float16).items():
        assert relative(value, truth[key]) < 2e-3, key


def test_layer_scales_of_many_sizes(device):
    layer, features, grad = make_case('drop path', 0, device=device)
    with torch.no_grad():
        layer.layer_scale_parameter.copy_(10.0 ** -torch.arange(DIM) * (torch.arange(DIM) % 3 > 0))
    truth = exact_gradients(layer, features, grad)
    for key, value in gradients(layer, features, grad, autocast=torch.float16).items():
        assert relative(value, truth[key]) < 2e-3, key
    value = gradients(layer, features, grad, autocast=torch.float16)['layer_scale_parameter']
    scale = truth['layer_scale_parameter'].abs().mean().item()
    torch.testing.assert_close(
        value.double(), truth['layer_scale_parameter'], rtol=1e-2, atol=1e-3 * scale
    )


def test_an_overflow_shows():
    """The scaler skips a step with an infinite gradient, and other samples stay as they are."""
    layer, features, grad = make_case('small layer scale', 0)
    truth = gradients(layer, features, grad, autocast=torch.float16)['input']
    grad[1, 3, 4, 5] = torch.inf
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    results = gradients(layer, features, grad, autocast=torch.float16)
    before = copy.deepcopy(layer.state_dict())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512
    assert all(map(torch.equal, layer.state_dict().values(), before.values()))
    assert not results['dwconv.weight'].isfinite().all()
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(results['input'][others], truth[others], rtol=1e-5, atol=1e-7)


def test_gradients_beyond_pure_half_precision_are_infinite():
    layer, features, grad = make_case('drop path', 0, torch.float16, grad_size=3000.0)
    truth = exact_gradients(layer, features, grad)
    results = gradients(layer, features, grad)
    for key, value in results.items():
        beyond = truth[key].abs() > 66000
        assert not value[beyond].isfinite().any(), key
        assert value[truth[key].abs() < 65000].isfinite().all(), key
    assert results['pwconv2.weight'].isinf().any()


@pytest.mark.parametrize('autocast', [False, True])
def test_grn_of_one_large_channel(autocast):
    """Its response is 64, and 64 times the activation is beyond float16."""
    grn = ConvNextGRN(64)
    with torch.no_grad():
        grn.weight += 0.01
    hidden = 1e-3 * torch.rand(2, 8, 8, 64)
    hidden[..., 5] = 30000.0
    truth = copy.deepcopy(grn).double()(hidden.half().double())
    if not autocast:
        grn = grn.half()
    with torch.autocast('cpu', torch.float16, enabled=autocast):
        value = grn(hidden.half())
    assert value.dtype == (torch.float32 if autocast else torch.float16)
    torch.testing.assert_close(value.double(), truth, rtol=2e-2, atol=1e-6)


def train(dtype, fused):
    """Trains a small backbone. Returns the parameters of its branches, one after the other."""
    torch.manual_seed(0)
    model = randomize(ConvNextBackbone(SMALL, fused=fused)).train()
    for name, parameter in model.named_parameters():
        if 'layer_scale' in name:
            parameter.data.fill_(1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-16)
    scaler = torch.amp.GradScaler('cpu', init_scale=65536.0, enabled=dtype == torch.float16)
    for step in range(4):
        torch.manual_seed(step)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            maps = model(torch.randn(2, 3, 32, 32))[-1]
        loss = 1e-5 * F.smooth_l1_loss(maps.float(), torch.randn(maps.shape))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    branches = [p for name, p in model.named_parameters() if 'conv' in name or 'layernorm' in name]
    return torch.nn.utils.parameters_to_vector(branches).detach()


def test_training_with_a_small_layer_scale():
    """Adam follows float32's path with fused blocks; the modules lose their gradients."""
    exact = train(torch.float32, fused=False)
    fused, modules = (train(torch.float16, fused) - exact for fused in (True, False))
    assert fused.norm() < 0.1 * modules.norm()
