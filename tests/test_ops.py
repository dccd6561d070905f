"""Compares the fused block and norm with the modules that they replace."""

import copy

import pytest
import torch
from helpers import STAGES, randomize
from measuring import Case, saved_activations
from torch.autograd import gradcheck

from convnext_backbone import ConvNextBackbone, ConvNextLayer, ConvNextLayerNorm
from convnext_backbone.ops import BlockParameters, BlockSettings, block


def make_layer(dim=24, **args):
    """A layer with random parameters."""
    return randomize(ConvNextLayer(dim, **args))


def relative(value, truth):
    """The relative error, or the absolute error if the truth is zero."""
    truth = truth.double()
    return ((value.double() - truth).norm() / (truth.norm() or 1)).item()


def outputs_and_gradients(run, module, features, seed=0):
    """Output and gradients of its random projection, by name."""
    module.zero_grad()
    features = features.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    output = run(features)
    torch.manual_seed(seed + 1)
    (output * torch.randn(output.shape).to(output.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return {'output': output, 'input': features.grad, **gradients}


def assert_equal(results, truths, bound=1e-5):
    assert results.keys() == truths.keys()
    for name, truth in truths.items():
        if truth is None:
            assert results[name] is None, name
        else:
            assert results[name].shape == truth.shape
            assert results[name].dtype == truth.dtype
            assert relative(results[name], truth) < bound, name


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('use_grn', [False, True])
@pytest.mark.parametrize(
    ('dim', 'shape'), [(16, (2, 13, 18)), (24, (3, 8, 8)), (40, (1, 33, 9)), (8, (2, 2, 1))]
)
def test_fused_block_equals_its_modules(kernels, dim, shape, use_grn, with_cp):
    layer = make_layer(dim, use_grn=use_grn, with_cp=with_cp, drop_path=0.5)
    features = torch.randn(shape[0], dim, *shape[1:])
    truth = outputs_and_gradients(layer.run_modules, layer, features)
    assert_equal(outputs_and_gradients(layer, layer, features), truth)
    torch.manual_seed(0)
    with torch.no_grad():
        assert relative(layer(features), truth['output']) < 1e-5


@pytest.mark.parametrize('use_grn', [False, True])
def test_parts_add_up(kernels, use_grn, monkeypatch):
    monkeypatch.setattr(block, 'PART_BYTES', 4 * 24 * 4 * 30)  # thirty rows
    layer = make_layer(use_grn=use_grn, drop_path=0.5)
    features = torch.randn(5, 24, 7, 3)
    truth = outputs_and_gradients(layer.run_modules, layer, features)
    assert_equal(outputs_and_gradients(layer, layer, features), truth)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('use_grn', [False, True])
def test_gradients_in_float64(use_grn, with_cp):
    layer = make_layer(4, use_grn=use_grn, with_cp=with_cp).double()
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda features, *_: layer(features), (features, *layer.parameters()))


@pytest.mark.parametrize('use_grn', [False, True])
def test_autocast_matches_the_modules(kernels, use_grn):
    """The same dtypes as the modules, and as close to float64."""
    layer = make_layer(32, use_grn=use_grn)
    features = torch.randn(2, 32, 16, 16)
    exact = copy.deepcopy(layer).double()
    truth = outputs_and_gradients(exact.run_modules, exact, features.double())
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast('cpu', torch.bfloat16):
            modules = outputs_and_gradients(layer.run_modules, layer, features.to(dtype))
            fused = outputs_and_gradients(layer, layer, features.to(dtype))
        for name, value in modules.items():
            assert fused[name].dtype == value.dtype, name
            assert relative(fused[name], truth[name]) < 1.5 * relative(value, truth[name]), name


def test_pure_bfloat16(kernels):
    layer = make_layer(32).bfloat16()
    features = torch.randn(2, 32, 16, 16)
    exact = copy.deepcopy(layer).double()
    truth = outputs_and_gradients(exact.run_modules, exact, features.bfloat16().double())
    modules = outputs_and_gradients(layer.run_modules, layer, features.bfloat16())
    fused = outputs_and_gradients(layer, layer, features.bfloat16())
    for name, value in modules.items():
        assert fused[name].dtype == torch.bfloat16
        assert relative(fused[name], truth[name]) < 1.5 * relative(value, truth[name]), name


@pytest.mark.parametrize(
    'frozen',
    ['dwconv', 'layernorm', 'pwconv1', 'pwconv2', 'layer_scale', 'grn', 'dwconv|layernorm|pwconv'],
)
@pytest.mark.parametrize('use_grn', [False, True])
def test_frozen_parameters_get_no_gradient(kernels, use_grn, frozen):
    layer = make_layer(use_grn=use_grn)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen.split('|')))
    features = torch.randn(2, 24, 9, 9)
    truth = outputs_and_gradients(layer.run_modules, layer, features)
    assert_equal(outputs_and_gradients(layer, layer, features), truth)


def test_input_without_gradient(kernels):
    layer = make_layer()
    features = torch.randn(2, 24, 9, 9)
    layer(features).square().sum().backward()
    fused = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    layer.run_modules(features).square().sum().backward()
    for value, parameter in zip(fused, layer.parameters(), strict=True):
        assert relative(value, parameter.grad) < 1e-5


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e-38])
@pytest.mark.parametrize('step', [1, 2])
def test_layer_scale_of_zero_has_its_gradient(kernels, scale, step):
    layer = make_layer()
    with torch.no_grad():
        layer.layer_scale_parameter[::step] = scale
    features = torch.randn(2, 24, 9, 9)
    truth = outputs_and_gradients(layer.run_modules, layer, features)
    results = outputs_and_gradients(layer, layer, features)
    assert_equal(results, truth)
    assert results['layer_scale_parameter'].norm() > 0
    if scale == 0:
        for name, value in truth.items():
            assert torch.equal(results[name] == 0, value == 0), name


def test_grn_of_silent_channels(kernels):
    layer = make_layer(use_grn=True)
    with torch.no_grad():  # the gelu is zero for every input
        layer.pwconv1.weight[::3] = 0
        layer.pwconv1.bias[::3] = 0
    features = torch.randn(2, 24, 9, 9)
    truth = outputs_and_gradients(layer.run_modules, layer, features)
    assert_equal(outputs_and_gradients(layer, layer, features), truth)


def test_nan_stays_nan(kernels):
    layer = make_layer(32)
    features = torch.randn(1, 32, 16, 16)
    features[0, 5, 0, 0] = torch.nan
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(layer(features).isnan(), layer.run_modules(features).isnan())


def test_second_backward_pass(kernels):
    layer = make_layer()
    features = torch.randn(2, 24, 9, 9, requires_grad=True)
    output = layer(features)
    first = torch.autograd.grad(output.square().sum(), features, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(output.square().sum(), features)[0], first)


def test_double_backward_of_a_norm(kernels):
    norm = randomize(ConvNextLayerNorm(8, data_format='channels_first', contiguous=True))
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    results = []
    for run in (norm, lambda x: norm.normalize(x.movedim(1, -1)).movedim(-1, 1)):
        grad = torch.autograd.grad(run(features).pow(3).sum(), features, create_graph=True)[0]
        results.append(torch.autograd.grad(grad.square().sum(), [features, norm.weight]))
    for value, truth in zip(*results, strict=True):
        assert relative(value, truth) < 1e-5


@pytest.mark.parametrize('frozen', [('features',), ('weight',), ('weight', 'bias')], ids=str)
def test_double_backward_of_a_partly_frozen_norm(kernels, frozen):
    norm = randomize(ConvNextLayerNorm(8, data_format='channels_first'))
    inputs = dict(features=torch.randn(2, 8, 4, 4), weight=norm.weight, bias=norm.bias)
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in frozen)
    wanted = [tensor for name, tensor in inputs.items() if name not in frozen]
    results = []
    for fused in (True, False):
        norm.fused = fused
        loss = norm(inputs['features']).pow(3).sum()
        grads = torch.autograd.grad(loss, wanted, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), wanted))
    for value, truth in zip(*results, strict=True):
        assert relative(value, truth) < 1e-5


def as_channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'view',
    [as_channels_last, lambda x: x[:, :, ::2], lambda x: x.flip(0)[:1].expand(3, -1, -1, -1)],
    ids=['channels_last', 'sliced', 'expanded'],
)
def test_inputs_and_gradients_of_any_layout(kernels, view):
    layer, features = make_layer(), torch.randn(2, 24, 8, 6)
    results = []
    for run in (layer.run_modules, layer):
        layer.zero_grad()
        leaf = features.clone().requires_grad_()
        output = run(view(leaf))
        torch.manual_seed(1)
        output.backward(torch.randn(output.shape[::-1]).permute(3, 2, 1, 0))
        results.append([output, leaf.grad, *(p.grad for p in layer.parameters())])
    for truth, value in zip(*results, strict=True):
        assert relative(value, truth) < 1e-5


def test_parameters_of_any_layout(kernels):
    layer, features = make_layer(), torch.randn(2, 24, 8, 6)
    for parameter in layer.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.t().contiguous().t()
    truth = outputs_and_gradients(layer.run_modules, layer, features)
    assert_equal(outputs_and_gradients(layer, layer, features), truth)


def test_outputs_may_be_changed_in_place(kernels):
    norms = [
        randomize(ConvNextLayerNorm(24, data_format='channels_first', contiguous=contiguous))
        for contiguous in (False, True)
    ]
    for module in (make_layer(), *norms):
        features = torch.randn(1, 24, 8, 8, requires_grad=True)
        truth = torch.autograd.grad((2 * module(features)).pow(3).sum(), features)[0]
        value = torch.autograd.grad(module(features).mul_(2).pow(3).sum(), features)[0]
        assert relative(value, truth) < 1e-6


def test_sums_over_a_large_map_are_accurate(kernels):
    layer = make_layer(8)
    features = torch.randn(2, 8, 384, 320)
    exact = copy.deepcopy(layer).double()
    truth = outputs_and_gradients(exact.run_modules, exact, features.double())
    for name, value in outputs_and_gradients(layer, layer, features).items():
        assert relative(value, truth[name]) < 1e-5, name


def test_threads_do_not_matter(kernels):
    layer, features = make_layer(32), torch.randn(2, 32, 24, 24)
    truth = outputs_and_gradients(layer, layer, features)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_equal(outputs_and_gradients(layer, layer, features), truth)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('contiguous', [False, True])
def test_norm_of_a_map(kernels, contiguous, dtype):
    norm = ConvNextLayerNorm(24, data_format='channels_first', contiguous=contiguous)
    randomize(norm)
    features = torch.randn(2, 24, 9, 7).contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(norm).double()

    def reference(features):
        return exact.normalize(features.movedim(1, -1)).movedim(-1, 1)

    truth = outputs_and_gradients(reference, exact, features.to(dtype).double())
    result = outputs_and_gradients(norm, norm, features.to(dtype))
    assert result['output'].dtype == dtype
    assert result['output'].is_contiguous() == contiguous
    for name, value in result.items():
        assert relative(value, truth[name]) < (1e-5 if dtype == torch.float32 else 1e-2), name


def test_half_and_a_quarter_of_the_memory(kernels):
    from transformers import ConvNextBackbone as Peer
    from transformers import ConvNextConfig

    images = torch.randn(1, 3, 128, 128)
    sizes, depths = [96, 192, 384, 768], [3, 3, 9, 3]
    config = ConvNextConfig(hidden_sizes=sizes, depths=depths, out_features=list(STAGES))
    case = Case('tiny', (128, 128), 1, 'cpu', 'fp32', 'train')
    peer = saved_activations(Peer(config), images, case)
    ours = ConvNextBackbone('tiny', out_features=STAGES)
    ours = saved_activations(ours, images, case)
    lean = ConvNextBackbone('tiny', out_features=STAGES, with_cp=True)
    lean = saved_activations(lean, images, case)
    assert ours < 0.53 * peer
    assert lean < 0.25 * peer


@pytest.mark.parametrize('use_grn', [False, True])
@torch.no_grad()
def test_no_step_waits_for_values(use_grn):
    """Meta tensors have no values: whatever asks for one, as ``item()`` does, is an error."""
    layer = make_layer(use_grn=use_grn).to('meta')
    features, keep = torch.empty(2, 9, 7, 24, device='meta'), torch.empty(2, device='meta')
    settings = BlockSettings(torch.bfloat16, torch.float32, 1e-6, 1e-6, lean=False)
    fused = block.Block(features, keep, settings, layer._fused_parameters())
    output, inner = fused.output(save=True)
    grad, grads = fused.gradients(output, inner, True, set(BlockParameters._fields))
    assert output.shape == grad.shape == features.shape
    assert len(grads) == (11 if use_grn else 9)
