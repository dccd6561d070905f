"""What users do to a model: train long, share it between threads, copy, save and move it."""

import copy
import gc
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import STAGES, randomize, same_tensors, small_backbone
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from convnext_backbone import ConvNextBackbone, ConvNextLayer, ConvNextLayerNorm

TINY = dict(depths=[1, 1], hidden_sizes=[8, 16])
VERSIONS = pytest.mark.parametrize('use_grn', [False, True])


def outputs_and_gradients(model, images):
    """The maps, and the gradients of their random projections, as one list."""
    images = images.clone().requires_grad_()
    torch.manual_seed(0)
    output = model(images)
    maps = [output] if isinstance(output, torch.Tensor) else output
    grads = [torch.randn(m.shape, dtype=m.dtype) for m in maps]
    tensors = [images, *(p for p in model.parameters() if p.requires_grad)]
    return [*maps, *torch.autograd.grad(maps, tensors, grads)]


def assert_close(results, truths, bound=1e-5):
    for value, truth in zip(results, truths, strict=True):
        assert value.dtype == truth.dtype
        assert (value - truth).norm() <= bound * truth.norm()


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='Linux tells the memory in use')
@pytest.mark.parametrize('args', [{}, dict(use_grn=True, with_cp=True)], ids=str)
def test_memory_is_flat_over_500_steps(args):
    model = ConvNextBackbone(TINY, out_features=('stem', 'stage2'), drop_path_rate=0.2, **args)
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, momentum=0.9)
    images = torch.randn(4, 3, 64, 64)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            sum(m.square().mean() for m in model(images)).backward()
            optimizer.step()
        gc.collect()
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE'), sum(
            isinstance(o, torch.Tensor) for o in gc.get_objects()
        )

    memory, tensors = train(50)
    later_memory, later_tensors = train(500)
    assert later_tensors == tensors
    # One map of the stem that is kept per step would be 16 MB.
    assert later_memory - memory < 12e6


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@VERSIONS
def test_deterministic_algorithms(use_grn, dtype):
    model = randomize(small_backbone(use_grn=use_grn, drop_path_rate=0.5)).train().to(dtype)
    images = torch.randn(4, 3, 64, 64, dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (outputs_and_gradients(model, images) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@VERSIONS
def test_eight_threads_share_one_model(use_grn):
    model = randomize(small_backbone(use_grn=use_grn))
    batches = [torch.randn(1 + i % 2, 3, 32 + 8 * (i % 3), 32) for i in range(24)]
    truths = [model(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(model, batches))
    for maps, truth in zip(results, truths, strict=True):
        assert all(map(torch.equal, maps, truth))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    'duplicate',
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=['deepcopy', 'pickle', 'torch.save'],
)
@VERSIONS
def test_copies_after_a_step(duplicate, use_grn):
    model = randomize(small_backbone(use_grn=use_grn)).train()
    images = torch.randn(2, 3, 32, 32)
    truth = outputs_and_gradients(model, images)
    other = duplicate(model)
    assert same_tensors(other.state_dict(), model.state_dict())
    randomize(model, seed=1)
    for value, expected in zip(outputs_and_gradients(other, images), truth, strict=True):
        assert torch.equal(value, expected)


@VERSIONS
def test_moving_a_model_after_a_step(use_grn):
    model = randomize(small_backbone(use_grn=use_grn))
    plain = small_backbone(use_grn=use_grn, fused=False)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    bounds = {torch.float64: 1e-10, torch.bfloat16: 5e-2, torch.float32: 3e-5}
    first = outputs_and_gradients(model, images)
    for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float32):
        model, plain, images = model.to(dtype), plain.to(dtype), images.to(dtype)
        truth = outputs_and_gradients(plain, images)
        assert_close(outputs_and_gradients(model, images), truth, bounds[dtype])
    model.to('meta')
    maps = model(images.to('meta'))
    assert [m.shape for m in maps] == [m.shape for m in first[: len(maps)]]
    model.to_empty(device='cpu').load_state_dict(plain.state_dict())
    assert_close(outputs_and_gradients(model, images), truth, bounds[torch.float32])


class Squared(nn.Module):
    def forward(self, weight):
        return weight.square()


def weight_norm(layer):
    parametrizations.weight_norm(layer.pwconv1)


def spectral_norm(layer):
    torch.nn.utils.spectral_norm(layer.dwconv)


def pruned(layer):
    prune.l1_unstructured(layer.pwconv1, 'weight', 0.3)
    prune.l1_unstructured(layer.pwconv2, 'weight', 0.3)
    prune.remove(layer.pwconv2, 'weight')


def parametrized_layer_scale(layer):
    parametrize.register_parametrization(layer, 'layer_scale_parameter', Squared())


def tied(layer):
    layer.layernorm.weight = layer.layer_scale_parameter
    layer.pwconv2.bias = layer.dwconv.bias


def lora(layer):
    class Adapted(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.down = linear, nn.Linear(16, 2, bias=False)
            self.up, self.weight, self.bias = nn.Linear(2, 64), linear.weight, linear.bias

        def forward(self, rows):
            return self.linear(rows) + self.up(self.down(rows))

    torch.manual_seed(1)
    layer.pwconv1 = Adapted(layer.pwconv1)


def hooks_on_gradients(layer):
    layer.pwconv1.weight.register_hook(lambda grad: 2 * grad)
    layer.pwconv2.register_full_backward_hook(lambda module, grads, _: (3 * grads[0],))


def frozen_biases(layer):
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_('bias' not in name)


def overlapping_parameters(layer):
    layer.layernorm.weight.data = torch.linspace(-1, 1, 32)[::2]
    layer.pwconv1.bias.data = torch.ones(1).expand(64)


CHANGES = [
    *(weight_norm, spectral_norm, pruned, parametrized_layer_scale, tied, lora),
    *(hooks_on_gradients, frozen_biases, overlapping_parameters),
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
def test_changed_layers_run_as_their_modules(change):
    results = []
    for fused in (None, False):
        layer = randomize(ConvNextLayer(16, drop_path=0.5, fused=fused))
        torch.manual_seed(0)
        change(layer)
        torch.manual_seed(0)
        results.append(outputs_and_gradients(layer, torch.randn(3, 16, 9, 9)))
    assert_close(*results)


def test_parametrized_norm_of_maps():
    norm = randomize(ConvNextLayerNorm(16, data_format='channels_first'))
    features, truth = torch.randn(2, 16, 5, 5), copy.deepcopy(norm)
    with torch.no_grad():
        truth.weight.square_()
    parametrize.register_parametrization(norm, 'weight', Squared())
    torch.testing.assert_close(norm(features), truth(features))


def test_replaced_parameters_in_a_functional_call():
    model, images = randomize(small_backbone()), torch.randn(1, 3, 32, 32)
    other = randomize(small_backbone(), seed=1)
    maps = torch.func.functional_call(model, dict(other.named_parameters()), (images,))
    assert all(map(torch.equal, maps, other(images)))


@VERSIONS
def test_inference_mode(use_grn):
    model, images = randomize(small_backbone(use_grn=use_grn)), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        maps = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            half = model(images)
    for value, truth, rough in zip(maps, model(images), half, strict=True):
        torch.testing.assert_close(value, truth)
        assert (rough - truth).norm() < 0.05 * truth.norm()


def test_hooks_on_saved_tensors():
    model, images = randomize(small_backbone(out_features=STAGES)), torch.randn(2, 3, 32, 32)
    truth = outputs_and_gradients(model, images)
    with torch.autograd.graph.save_on_cpu():
        assert_close(outputs_and_gradients(model, images), truth)
