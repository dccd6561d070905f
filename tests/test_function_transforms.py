"""Function transforms, gradients of gradients, and the switch that makes everything plain."""

import copy

import pytest
import torch
from helpers import randomize, small_backbone
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian

from convnext_backbone import ConvNextLayer, ConvNextLayerNorm

KINDS = ['v1', 'v2', 'with_cp', 'norm', 'contiguous norm']


def make(kind, fused=None):
    """A block or a norm of 8 channels."""
    if 'norm' in kind:
        contiguous = kind == 'contiguous norm'
        norm = ConvNextLayerNorm(8, 1e-6, 'channels_first', contiguous=contiguous, fused=fused)
        return randomize(norm)
    args = {'v1': {}, 'v2': dict(use_grn=True), 'with_cp': dict(with_cp=True)}[kind]
    return randomize(ConvNextLayer(8, fused=fused, **args))


def close(value, truth):
    torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)


def used_functions(output):
    """The names of all nodes in the graph of an output."""
    names, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(node.name())
            nodes += [following for following, _ in node.next_functions]
    return names


@pytest.mark.parametrize('use_grn', [False, True])
def test_vmap_over_images(use_grn):
    model, images = randomize(small_backbone(use_grn=use_grn)), torch.randn(3, 3, 32, 32)
    each = torch.func.vmap(lambda image: model(image[None]))(images)
    for value, truth in zip(each, model(images), strict=True):
        close(value[:, 0], truth)


@pytest.mark.parametrize('kind', KINDS)
def test_jacobians(kind):
    module, features = make(kind), torch.randn(1, 8, 3, 2)
    plain = make(kind, fused=False)

    def run(features):
        return module(features).sum((2, 3))

    truth = jacobian(lambda features: plain(features).sum((2, 3)), features)
    for vectorize in (False, True):
        close(jacobian(run, features, vectorize=vectorize), truth)
    close(jacobian(run, features, vectorize=True, strategy='forward-mode'), truth)
    close(torch.func.jacrev(run)(features), truth)
    close(torch.func.jacfwd(run)(features), truth)


@pytest.mark.parametrize('kind', KINDS)
def test_hessians(kind):
    module, features = make(kind), torch.randn(1, 8, 2, 2)
    plain = make(kind, fused=False)
    truth = hessian(lambda features: plain(features).pow(3).sum(), features)

    def run(features):
        return module(features).pow(3).sum()

    for vectorize in (False, True):
        close(hessian(run, features, vectorize=vectorize), truth)
    close(torch.func.hessian(run)(features), truth)


def test_jacobian_of_a_model():
    model, images = randomize(small_backbone()), torch.randn(1, 3, 32, 32)

    def run(images):
        return model(images)[-1][:, :4].sum((2, 3))

    close(jacobian(run, images, vectorize=True), jacobian(run, images))


@pytest.mark.parametrize('frozen', ['', 'features', 'pwconv1|layernorm.bias', 'layer_scale|grn'])
@pytest.mark.parametrize('kind', KINDS)
def test_gradients_of_gradients(kind, frozen):
    results = []
    for fused in (True, False):
        module = make(kind, fused).train()
        features = torch.randn(2, 8, 5, 4, generator=torch.Generator().manual_seed(0))
        inputs = dict(module.named_parameters(), features=features)
        for name, tensor in inputs.items():
            tensor.requires_grad_(not any(part in name for part in frozen.split('|') if part))
        wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
        grads = torch.autograd.grad(module(features).pow(3).sum(), wanted, create_graph=True)
        loss = sum((0.01 * grad).square().sum() for grad in grads)
        results.append(torch.autograd.grad(loss, wanted))
    for value, truth in zip(*results, strict=True):
        assert (value - truth).norm() <= 1e-5 * truth.norm()


def test_gradients_of_gradients_with_drop_path_and_autocast():
    results = []
    for fused in (True, False):
        layer = randomize(ConvNextLayer(8, drop_path=0.5, fused=fused))
        torch.manual_seed(3)
        # Of so many samples, drop path keeps some in every version's stream of random numbers.
        features = torch.randn(16, 8, 5, 4, requires_grad=True)
        with torch.autocast('cpu', torch.bfloat16):
            output = layer(features)
        grads = torch.autograd.grad(output.pow(3).sum(), features, create_graph=True)
        results.append(torch.autograd.grad(grads[0].square().sum(), layer.pwconv1.weight)[0])
    assert (results[0] - results[1]).norm() < 0.05 * results[1].norm()


@pytest.mark.parametrize('kind', KINDS)
def test_forward_mode_through_a_backward_pass(kind):
    module, features = make(kind), torch.randn(1, 8, 3, 3, requires_grad=True)
    output, tangent = module(features), torch.randn(1, 8, 3, 3)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.randn(1, 8, 3, 3), tangent)
        passed = torch.autograd.grad(output, features, grad, retain_graph=True)[0]
        derivative = forward_ad.unpack_dual(passed).tangent
    # A backward pass is linear in the gradient that it is given.
    close(derivative, torch.autograd.grad(output, features, tangent)[0])


@pytest.mark.parametrize('by', ['argument', 'variable'])
def test_one_switch_makes_everything_plain(by, monkeypatch):
    images = torch.randn(1, 3, 32, 32)
    model = small_backbone(fused=False if by == 'argument' else None)
    if by == 'variable':
        assert 'Fused' in str(used_functions(model(images)[-1]))
        monkeypatch.setenv('CONVNEXT_FUSED', '0')
    for output in model(images):
        assert 'Fused' not in str(used_functions(output))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kind', KINDS)
def test_negated_views(kind, layout):
    module = make(kind)
    features, grad = torch.randn(2, 2, 8, 4, 4).unbind()
    features, grad = (t.contiguous(memory_format=layout) for t in (features, grad))
    close(module(torch._neg_view(features)), module(-features))
    leaf = features.clone().requires_grad_()
    output = module(leaf)
    (truth,) = torch.autograd.grad(output, leaf, -grad, retain_graph=True)
    close(torch.autograd.grad(output, leaf, torch._neg_view(grad))[0], truth)
    for parameter in module.parameters():
        parameter.data = torch._neg_view(-parameter.data)
    close(module(features), output)


def test_a_function_mode_sees_the_modules():
    class Counter(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.calls += function is nn.functional.linear
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        make('v1')(torch.randn(1, 8, 4, 4))
    assert counter.calls == 2


def test_a_copy_of_a_layer_in_a_transform_keeps_its_parameters():
    layer, features = make('v1'), torch.randn(3, 8, 4, 4)
    stacked, buffers = torch.func.stack_module_state([layer, randomize(copy.deepcopy(layer), 1)])

    def run(parameters, buffers):
        return torch.func.functional_call(layer, (parameters, buffers), (features,))

    ensemble = torch.func.vmap(run)(stacked, buffers)
    close(ensemble[0], layer(features))
    close(ensemble[1], randomize(copy.deepcopy(layer), 1)(features))
